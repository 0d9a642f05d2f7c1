"""`verify`: one row of every published table trained again, and the pages written again."""

import signal
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskdm.cli.output import AsJson, print_json, print_table
from maskdm.cli.project import enter_project
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.units import four_digits, si

if TYPE_CHECKING:
    from maskdm.engine.verifying import Repeated
    from maskdm.reporting.rendering import Rendering

NOT_MET = 1  # exit status
PAGES = ("report.md", "study.md", "search/search.md", "study/search/search.md", "index.html")  # below reports/


def verify(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Of these tables alone, as `--plan` names them; without it, of all.")
    ] = None,
    day: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            help="Decides which rows have their turn; without it, today. What was stopped goes on by its day.",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0, help="Train no more FLOPs; other tables have their turn another day."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Rows at a time; without it, one a GPU or core.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say which rows, and what they cost.")] = False,
    as_json: AsJson = False,
) -> None:
    """Repeat one row of every published table on this machine, and say which do not hold. `make verify` is the same.

    - A row of a comparison is trained with a new seed. Its held-out loss must lie within the 95 % prediction interval
      of the published seeds. One outside of it gets a second seed, as one in 20 is outside by chance.
    - A trial of a tuning or of a search is trained with its own seed. It must come to the same digits on a machine of
      the same kind, and to the same held-out loss within 1 % on another one.
    - Pages, tables and figures are written again from the records. They must be the same bytes.

    The status is 1 if something does not hold. The same command goes on after a stop. What was timed is not repeated.

    ```sh
    maskdm verify --plan           # which rows today, and how long they take here
    maskdm verify
    maskdm verify default          # a row of reports/report.md alone
    maskdm verify --budget 8e12    # every night a few
    ```
    """
    enter_project()
    from maskdm.engine.dry_run import duration
    from maskdm.engine.verifying import cost, due, job_of, left_out, of_tables, repeat_all, within
    from maskdm.engine.workers import default_workers

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is done is saved
    today, workers = (day.date() if day else date.today()), workers or default_workers()
    jobs = within([job_of(check) for check in of_tables(due(today), tables or ())], budget)
    costs = cost(jobs, workers)
    said = (
        f"{today}: {len(jobs)} rows, {costs.trainings} to train: {si(costs.flops, 'FLOPs')}, {costs.workers} at a "
        f"time, about {duration(costs.seconds)} here. Writing the pages again comes on top. What is done is not done "
        "again."
    )
    if others := left_out():
        said += f" Left out, as their images are not prepared here (`dvc repro study/dvc.yaml`): {', '.join(others)}."
    if plan:
        rows = [{"table": job.check.table, "row": job.check.row, "compute": si(job.flops, "FLOPs")} for job in jobs]
        if as_json:
            known = {"day": str(today), "rows": rows, "left_out": others}
            print_json(known | {"train_flops": costs.flops, "seconds": costs.seconds})
            return
        print_table(rows)
        print(said)
        return
    if not as_json:
        print(said, flush=True)
    found = [_judged(one) for one in repeat_all(jobs, workers)]
    if outside := {row["row"] for row in found if row["verdict"] == "outside"}:
        second = [job_of(check) for check in due(today, attempt=1) if check.seed is not None and check.row in outside]
        again = {row["row"]: row for row in map(_judged, repeat_all(second, workers))}
        found = [_after_two(row, again[row["row"]]) if row["row"] in again else row for row in found]
    found += _pages(workers)
    found.sort(key=lambda row: [row["what"] == "written again", row["table"], row["row"]])
    is_met = all(row["is_met"] for row in found)
    if as_json:
        print_json({"day": str(today), "is_met": is_met, "rows": found, "left_out": others})
    else:
        print_table([{name: value for name, value in row.items() if not name.startswith("is_")} for row in found])
        print(f"{in_short(found)} ({today})")
    if not is_met:
        raise typer.Exit(NOT_MET)


def in_short(rows: list[dict[str, Any]]) -> str:
    """How many rows were checked, and which of them do not hold."""
    failed = [row["row"] for row in rows if not row["is_met"]]
    unwritten = [row["row"] for row in rows if not row["is_checked"]]
    found = f"{len(failed)} do not hold: {', '.join(failed)}" if failed else "all hold"
    aside = f"; not written, hence not checked: {', '.join(unwritten)}" if unwritten else ""
    return f"{len(rows) - len(unwritten)} checked: {found}{aside}"


def _judged(one: "Repeated") -> dict[str, Any]:
    """What is said of a row."""
    from maskdm.reporting.pairs import expect, expect_again

    is_new = one.check.seed is not None
    row = {
        "table": one.check.table,
        "row": one.check.row,
        "what": f"seed {one.check.seed}" if is_new else "its own seed",
        "published": "",
        "here": "",
        "is_checked": True,
    }
    if one.record is None:
        return row | {"verdict": f"not repeated: {one.obstacle}", "is_met": False}
    try:
        expected = expect(one.published, one.record)[:1] if is_new else None
    except MaskDMError as error:
        return row | {"verdict": f"not judged: {error}", "is_met": False}
    expected = expected or expect_again(one.published[0], one.record, one.is_same_kind)
    loss, missed = expected[0], [each.measure for each in expected if not each.is_met]
    if is_new:
        published = f"{four_digits(loss.low)} to {four_digits(loss.high)}"
        verdict = "outside" if missed else "within"
    else:
        published = f"{loss.mean:.10g}" if one.is_same_kind else f"{four_digits(loss.mean)} +- 1 %"
        verdict = f"differs: {', '.join(missed)}" if missed else "the same digits" if one.is_same_kind else "within"
    here = four_digits(loss.value) if is_new or not one.is_same_kind else f"{loss.value:.10g}"
    return row | {"published": published, "here": here, "verdict": verdict, "is_met": not missed}


def _after_two(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """What is said of a row whose first seed was outside."""
    both = {"what": f"{first['what']}, then {second['what']}", "here": f"{first['here']}, {second['here']}"}
    return second | both | {"verdict": "outside, twice" if second["verdict"] == "outside" else second["verdict"]}


def _pages(workers: int) -> list[dict[str, Any]]:
    """What is said of the published pages."""
    from maskdm.engine.workers import run_all

    pages = [page for page in PAGES if Path("reports", page).is_file()]
    return [_rendered(one) for one in run_all(_write_again, pages, workers, unit="page")]


def _write_again(page: str) -> "Rendering":
    """A page, written again; in a process of its own."""
    from maskdm.engine.searching import LARGE, SMALL
    from maskdm.reporting.index import write_index
    from maskdm.reporting.rendering import render_again
    from maskdm.reporting.report import write_default, write_study
    from maskdm.reporting.search_report import write_search

    def search() -> None:
        place = LARGE if page.startswith("study/") else SMALL
        write_search(place.params(), place.stage, place.reports)

    writers = {"report.md": write_default, "study.md": write_study, "index.html": write_index}
    return render_again(page, writers.get(page, search))


def _rendered(one: "Rendering") -> dict[str, Any]:
    row = {"table": "pages", "row": one.page, "what": "written again", "published": "", "here": "", "is_checked": True}
    if one.obstacle:  # samples are kept on the machine that drew them: that they are elsewhere is no fault
        return row | {"verdict": f"not written: {one.obstacle}", "is_met": True, "is_checked": False}
    verdict = f"differs: {', '.join(one.differing)}" if one.differing else f"the same bytes, {one.files} files"
    return row | {"verdict": verdict, "is_met": not one.differing}
