"""`verify`: what is published is found to hold, and what was doctored is found not to."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from maskdm.cli.verifying import _judged, _rendered, in_short
from maskdm.engine import verifying
from maskdm.engine.verifying import Check, Job, Repeated, due, one_a_trial, within
from maskdm.reporting.pairs import expect_again
from maskdm.reporting.rendering import Rendering, render_again
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import write_text
from maskdm.tracking.records import Folded, Record, Stage, read_records
from tests.conftest import MODELS
from tests.imports import PROJECT
from tests.pipeline.test_study import DENSE, FIRST, MASKED, write_blocks
from tests.workspace import ENVIRONMENT, make_workspace, stage, write_params

DAY = date(2026, 1, 31)
VERIFY = [sys.executable, "-c", "from maskdm.cli import main; main()", "verify", f"--day={DAY}"]
RATE = {"rate": {"first": 1.0, "low": 0.3, "high": 3.0, "log": True}}
TUNED: dict[str, Any] = {
    "seed": 9,
    "train_flops": 4e9,
    "trials": 2,
    "recipe": "adamw",
    "model": MODELS["uvit"],
    "arms": {"scratch": {"arm": [DENSE], "space": RATE}, "patches": {"arm": [MASKED, DENSE], "space": RATE}},
}


# --- what is due ------------------------------------------------------------------------------------------------


def test_every_row_of_every_published_table_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(verifying, "_is_prepared", lambda data_set: data_set is None)  # as in a fresh clone
    assert {"photographs", "transfer-600"} <= set(verifying.left_out())
    monkeypatch.setattr(verifying, "_is_prepared", lambda data_set: True)
    assert verifying.left_out() == []
    days = [DAY + timedelta(days=number) for number in range(60)]
    published = list(verifying._published())
    monkeypatch.setattr(verifying, "_published", lambda: published)
    found = [due(day) for day in days]
    tables = {check.table for check in found[0]}
    assert {"default", "methods", "tuning/rates", "search/confirm"} <= tables
    assert all({check.table for check in checks} == tables and len(checks) == len(tables) for checks in found)
    assert len({checks[0].table for checks in found}) == len(tables), "a small budget reaches all of them, too"
    rows = {(check.table, check.row) for checks in found for check in checks}
    assert len(rows) == len(set(published))
    seeds = [check.seed for checks in found for check in checks if check.table == "default"]
    assert len(set(seeds)) == len(days), "code that has changed meanwhile is not taken for trained already"


def test_a_budget_takes_what_fits_and_says_what_would() -> None:
    jobs = [
        Job(Check(DAY, "tuning", name), name, flops)
        for name, flops in (("a/b-00", 4.0), ("c/d-00", 9.0), ("e/f-00", 2.0))
    ]
    assert [job.flops for job in within(jobs, 7)] == [4, 2]
    equal = Job(Check(DAY, "study", "a/b-00"), "a/b-00", 4.0)
    assert within([*jobs, equal], 7) == [jobs[0], equal, jobs[2]], "an equal trial costs nothing more"
    assert within(jobs, None) == jobs
    lost = Job(Check(DAY, "tuning", "g/h-00"))
    assert within([lost], 1) == [lost], "that it cannot be trained is said whatever the budget"
    with pytest.raises(MaskDMError, match="--budget=1; allowed: from 2, the FLOPs"):
        within([lost, *jobs], 1)


def test_equal_trials_of_two_tables_are_trained_once() -> None:
    """Two workers that train one trial are in each other's way."""
    jobs = [
        Job(Check(DAY, "study", row, 7), identity)
        for row, identity in (("a/scratch", "1"), ("b/scratch", "1"), ("b/crops", "2"), ("c/lost", ""), ("d/lost", ""))
    ]
    found = [[job.check.row for job in group] for group in one_a_trial(jobs)]
    assert found == [["a/scratch", "b/scratch"], ["b/crops"], ["c/lost"], ["d/lost"]]


def test_a_repeated_trial_is_the_same_to_the_last_digit_on_the_same_kind_of_machine() -> None:
    record = read_records(PROJECT, ("default",))[0][0]
    loss = record.summary["heldout_loss"]

    def met(factor: float, is_same_kind: bool) -> bool:
        new = replace(record, summary=record.summary | {"heldout_loss": factor * loss})
        return all(one.is_met for one in expect_again(record, new, is_same_kind))

    assert met(1, is_same_kind=True)
    assert not met(1 + 1e-15, is_same_kind=True)
    assert met(1.009, is_same_kind=False)
    assert not met(1.011, is_same_kind=False)


def test_a_page_is_written_again_beside_the_published_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(Path("reports/a.md"), "as published")
    write_text(Path("reports/table.csv"), "1")
    write_text(Path("reports/other.md"), "of another page")

    def write(text: str) -> None:
        write_text(Path("reports/a.md"), text)
        write_text(Path("reports/table.csv"), "1")

    assert render_again("a.md", lambda: write("as published")).differing == ()
    found = render_again("a.md", lambda: write("doctored"))
    assert (found.files, found.differing) == (2, ("a.md",))
    assert Path.cwd() == tmp_path
    assert Path("reports/a.md").read_text() == "as published"

    def fail() -> None:
        raise MaskDMError("runs: no such file")

    assert render_again("a.md", fail).obstacle == "runs: no such file"


def test_a_page_that_cannot_be_written_here_is_not_counted_as_checked() -> None:
    untrained = _judged(Repeated(Check(DAY, "tuning", "rates/scratch-00"), obstacle="records: damaged"))
    pages = [_rendered(Rendering("a.md", 2)), _rendered(Rendering("b.md", 2, obstacle="runs: no samples"))]
    assert in_short(pages) == "1 checked: all hold; not written, hence not checked: b.md"
    assert in_short([untrained, *pages]).startswith("2 checked: 1 do not hold: rates/scratch-00; ")


# --- the command, on a toy project with a table of each kind -----------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with `params.yaml`'s comparison, a part of the study, a tuning and a search, and their pages."""
    folder = tmp_path_factory.mktemp("published")
    make_workspace(folder, "smoke")
    write_params(folder)
    write_blocks(folder, {"parts": {"first": FIRST, "again": FIRST}, "tunings": {"rates": TUNED}})
    for name in ("prepare", "reference", "masks", "step_time"):
        stage(folder, name)
    for arm in ("scratch", "staged"):
        for name in ("pretrain", "finetune", "evaluate"):
            stage(folder, name, arm)
    for part in ("first", "again"):  # equal trials: they are trained once
        stage(folder, "study", part)
    stage(folder, "tune", "rates")
    stage(folder, "search")
    for name, *arguments in (
        ("step_time", "--study"),
        ("report", "--study"),
        ("report",),
        ("search_report",),
        ("page",),
    ):
        stage(folder, name, *arguments)
    return folder


def verify(folder: Path, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Its status, and what it says of each row."""
    done = subprocess.run([*VERIFY, "--json", *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode in {0, 1}, done.stderr
    return done.returncode, {f"{row['table']}: {row['row']}": row for row in json.loads(done.stdout)["rows"]}


def doctor(folder: Path, stage: Stage, change: Callable[[Record], Record]) -> None:
    """Write other records than those that were made, in all lines of a stage's files."""
    pairs = read_records(folder, (stage,))
    for path in sorted((folder / "records" / stage).glob("*.jsonl")):
        own = [pair for pair in pairs if pair[0].key.rpartition("/")[0] == path.stem]
        lines = []
        for record, machine in own:
            assert machine is not None
            unsigned = replace(machine, record_sha256="")  # else the reader sees it first
            lines.append(json.dumps(asdict(Folded(change(record), unsigned)), sort_keys=True))
        path.write_text("\n".join(lines) + "\n")


def with_loss(change: Callable[[Record], float]) -> Callable[[Record], Record]:
    """Another final loss, in the summary and in the history, which pages are made from."""

    def changed(record: Record) -> Record:
        loss = {"heldout_loss": change(record)}
        last = max(index for index, row in enumerate(record.history) if "heldout_loss" in row)
        history = [row | loss if index == last else row for index, row in enumerate(record.history)]
        return replace(record, summary=record.summary | loss, history=history)

    return changed


@pytest.mark.slow
def test_what_is_published_holds_and_a_killed_check_goes_on(published: Path) -> None:
    main = subprocess.Popen([*VERIFY, "--json"], cwd=published, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    done = published / "runs" / "verify" / str(DAY)
    while not list(done.rglob("*.json")):
        assert main.poll() is None
        time.sleep(0.05)
    main.send_signal(signal.SIGKILL)
    main.communicate()
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*.json")}
    status, rows = verify(published)
    again = {row: found for row, found in rows.items() if found["table"] != "pages"}
    assert {row.partition(":")[0] for row in again} == {
        *("default", "first", "again", "tuning/rates", "search/confirm", "search/trials")
    }
    for found in again.values():
        if found["what"] == "its own seed":
            assert found["verdict"] == "the same digits"
        else:  # of a row of two seeds: one in 20 may be outside, and then another one
            assert found["verdict"].startswith(("within", "outside, twice"))
    assert status == int(any(found["verdict"] == "outside, twice" for found in again.values()))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "what was done is not done again"
    pages = {found["row"]: found["verdict"] for found in rows.values() if found["table"] == "pages"}
    assert set(pages) == {"report.md", "study.md", "search/search.md", "index.html"}
    assert all(verdict.startswith("the same bytes") for verdict in pages.values()), pages


@pytest.mark.slow
def test_what_was_doctored_is_found(published: Path) -> None:
    # With a spread that a seed of its own cannot explain.
    doctor(published, "default", with_loss(lambda record: 9 + 1e-3 * int(record.params["seed"])))
    doctor(published, "tuning", with_loss(lambda record: (1 + 1e-12) * record.summary["heldout_loss"]))
    doctor(published, "search", lambda record: replace(record, identity="0" * 16))
    table = published / "reports" / "study" / "trials.csv"
    table.write_text(table.read_text().replace("scratch", "Scratch", 1))
    status, rows = verify(published)
    found = {row: one["verdict"] for row, one in rows.items()}
    assert status == 1
    [default] = [verdict for row, verdict in found.items() if row.startswith("default")]
    [tuning] = [verdict for row, verdict in found.items() if row.startswith("tuning")]
    assert (default, tuning) == ("outside, twice", "differs: heldout_loss")
    stale = [verdict for row, verdict in found.items() if row.startswith("search")]
    assert len(stale) == 2
    assert all("is of other settings, data or numerics than today's; `dvc repro search`" in each for each in stale)
    assert found["pages: study.md"] == "differs: study/trials.csv"
    assert found["pages: report.md"].startswith("differs: ")


@pytest.mark.slow
def test_without_records_or_with_too_small_a_budget_it_is_one_line(published: Path, tmp_path: Path) -> None:
    make_workspace(tmp_path, "smoke")
    for folder, arguments, says in (
        (tmp_path, [], "error: records: no table has records; `dvc repro` makes those of params.yaml"),
        (published, ["--budget=5"], "error: --budget=5; allowed: from "),
        (published, ["other"], "error: table other; allowed: "),
    ):
        done = subprocess.run([*VERIFY, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith(says)
