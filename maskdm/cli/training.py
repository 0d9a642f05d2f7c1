"""`train`: one arm with one seed."""

import signal
from typing import Annotated

import typer

from maskdm.cli.output import AsJson, print_json, print_table
from maskdm.cli.project import complete_arm, enter_project
from maskdm.runtime.units import four_digits


def train(
    arm: Annotated[str, typer.Argument(help="An arm of `params.yaml`.", autocompletion=complete_arm)],
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of weights, order of images and noise; without it, the first of `seeds`.")
    ] = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="Draw samples at every snapshot and compare them with real images, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train one arm with one seed, with a live bar. It is the trial that `dvc repro` makes of them.

    It goes on where it was stopped, with the same command. The weights are in `runs/train/<arm>/<seed>/weights`,
    beside the record. MLflow logs the run. Nothing is written to `records/`.

    ```sh
    maskdm train crops
    maskdm train crops --seed 7 --judge
    maskdm sample runs/train/crops/7
    ```
    """
    enter_project()
    from maskdm.engine.project import Project
    from maskdm.engine.single import one_trial, train_alone
    from maskdm.runtime.processes import ALONE

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is done is saved
    folder, record = train_alone(one_trial(Project.open(ALONE), arm, seed), judge)
    folder = folder.resolve()
    if as_json:
        print_json({"folder": str(folder), "seed": record.params["seed"], **record.summary})
        return
    values = {name: four_digits(float(value)) for name, value in record.summary.items()}
    print_table([{"measure": name, "value": value} for name, value in values.items()], title=f"{folder}")
