"""`compare` and `reproduce`: arms against each other, and a new seed against a published row."""

import math
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskdm.cli.output import AsJson, print_json, print_table
from maskdm.cli.project import complete_arm, enter_project
from maskdm.runtime.units import four_digits, si

if TYPE_CHECKING:
    from maskdm.reporting.pairs import Expectation, Pair

NOT_MET = 1  # exit status

ArmOrRun = Annotated[
    str,
    typer.Argument(
        help="An arm of `params.yaml`, `<part>/<arm>` of the study, or a folder of `maskdm train`.",
        autocompletion=complete_arm,
    ),
]


def compare(first: ArmOrRun, second: ArmOrRun, as_json: AsJson = False) -> None:
    """Compare two arms, or two runs, from their records: seed by seed, with 95 % intervals. Nothing is trained.

    `compute_to_target` is the compute at which the first reaches the final held-out loss of the second, as a share of
    what the second needed for it. Intervals are Student's t over the seeds that both have; with one seed there is none.

    ```sh
    maskdm compare crops scratch
    maskdm compare masks/crop4 masks/patch75     # two arms of the study
    maskdm compare runs/train/crops/7 runs/train/scratch/7
    ```
    """
    here = Path.cwd()
    enter_project()
    from maskdm.reporting.pairs import compare_runs, find_runs

    own, other = (find_runs(source, here, Path()) for source in (first, second))
    seeds, pairs = compare_runs(own, other)
    flops = [next(iter(runs.values())).value("train_flops") for runs in (own, other)]
    if as_json:
        spent = {"first": flops[0], "second": flops[1]}
        print_json({"seeds": seeds, "train_flops": spent, "measures": [asdict(pair) for pair in pairs]})
        return
    print_table([_as_row(pair, first, second, len(seeds)) for pair in pairs])
    equal = math.isclose(*flops, rel_tol=0.01)
    unequal = "" if equal else f"; not of equal compute: {' and '.join(si(spent, 'FLOPs') for spent in flops)}"
    print(f"{len(seeds)} seeds in common: {', '.join(map(str, seeds))}{unequal}")


def reproduce(
    row: Annotated[
        str,
        typer.Argument(help="An arm of `params.yaml`, or `<part>/<arm>` of the study.", autocompletion=complete_arm),
    ],
    seed: Annotated[
        int | None, typer.Option(min=0, help="None of the row's own; without it, the one after its last.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train one row of a published table with a new seed, and say whether it falls where the row lets one expect it.

    The interval is the 95 % prediction interval for one new seed (Student's t over the row's seeds): even if all is the
    same, one new seed in 20 falls outside of it. The verdict is on the held-out loss. The status is 1 if it is outside.
    It goes on where it was stopped, with the same command.

    ```sh
    maskdm reproduce crops              # a row of reports/report.md
    maskdm reproduce masks/crop4 --seed 11
    ```
    """
    enter_project()
    from maskdm.engine.reproducing import PublishedRow
    from maskdm.reporting.pairs import expect

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is done is saved
    found = PublishedRow.open(row)
    folder, record = found.train(seed)
    expected = expect(found.records, record)
    verdict = expected[0]
    if as_json:
        measures = [asdict(one) | {"is_met": one.is_met} for one in expected]
        content = {"row": found.name, "seed": record.params["seed"], "is_met": verdict.is_met, "measures": measures}
        print_json(content | {"folder": str(folder.resolve())})
    else:
        print_table([_as_expected(one) for one in expected])
        place = "within" if verdict.is_met else "outside of"
        print(
            f"{found.name} with seed {record.params['seed']}: the held-out loss {four_digits(verdict.value)} "
            f"lies {place} the 95 % prediction interval for one new seed, by {len(found.records)} published seeds"
        )
    if not verdict.is_met:
        raise typer.Exit(NOT_MET)


def _as_row(pair: "Pair", first: str, second: str, seeds: int) -> dict[str, str]:
    def shown(change: float) -> str:
        return f"{100 * change:+.1f} %" if pair.is_ratio else f"{change:+.4g}"

    own, change = four_digits(pair.first), shown(pair.change)
    between = f"{shown(pair.low)} to {shown(pair.high)}" if not math.isnan(pair.low) else ""
    if math.isinf(pair.first):
        own, change, between = f"reached with {pair.reached} of {seeds} seeds", "", ""
    return {
        "measure": pair.measure,
        first: own,
        second: four_digits(pair.second),
        "change": change,
        "95 % interval": between,
    }


def _as_expected(one: "Expectation") -> dict[str, str]:
    return {
        "measure": one.measure,
        "this seed": four_digits(one.value),
        "row's mean": four_digits(one.mean),
        "expected": f"{four_digits(one.low)} to {four_digits(one.high)}",
        "": "within" if one.is_met else "outside",
    }
