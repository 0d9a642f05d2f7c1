"""`open`, `ui` and `sync`: the page, and MLflow's view of the records."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskdm.cli.output import AsJson, print_json
from maskdm.cli.project import enter_project
from maskdm.runtime.browser import open_page
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import INDEX, stage_folder

if TYPE_CHECKING:
    from maskdm.tracking.mlflow_models import Model
    from maskdm.tracking.records import Record


def open_index() -> None:
    """Show the page of the comparison in the browser; without a display, print where it is.

    ```sh
    maskdm open              # after `dvc repro`
    ```
    """
    enter_project()
    open_page(INDEX, "`dvc repro` makes it")


def sync(as_json: AsJson = False) -> None:
    """Rebuild MLflow's store from `records/`: after a clone, a DVC cache hit, or a time without the server.

    What the store has already stays. Models come from the weights in `runs/`, which `dvc pull` fetches.
    `MLFLOW_TRACKING_URI` names another store than `mlflow.db`.

    ```sh
    maskdm sync && maskdm ui
    ```
    """
    enter_project()
    from maskdm.tracking import mlflow_store

    changed = mlflow_store.sync(Path(), _model_of)
    if as_json:
        print_json({"runs_added_or_completed": changed})
        return
    print(f"{changed} runs added or completed")


def _model_of(record: "Record") -> "Model | None":
    arm, _, seed = record.key.rpartition("/")
    if record.stage != "default" or not stage_folder("finetune", arm, int(seed)).is_dir():
        return None
    from maskdm.engine.model import recorded_model  # here: it imports PyTorch, which a fresh clone does not need

    return recorded_model(record, stage_folder("finetune", arm, int(seed)))


def ui(
    search: Annotated[bool, typer.Option("--search", help="Optuna's dashboard of the search instead.")] = False,
    large: Annotated[bool, typer.Option("--large", help="With --search: that of the study.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Without it 5000, or 8080 with --search.", show_default=False)
    ] = None,
) -> None:
    """Open MLflow's UI on the project's runs, or Optuna's dashboard on its search, and print the address.

    Only this machine can reach it. Ctrl-C ends it.

    ```sh
    maskdm ui                # the table of arms
    maskdm ui --search       # trials, curves and importances, while the search runs or afterwards
    ```
    """
    enter_project()
    if large and not search:
        raise MaskDMError("--large: allowed: with --search")
    if search:
        from maskdm.engine.searching import LARGE, SMALL, show_dashboard

        show_dashboard(LARGE if large else SMALL, port or 8080)
        return
    from maskdm.tracking import mlflow_store

    print(f"The arms: {mlflow_store.ui_page(port or 5000)}", flush=True)
    command = mlflow_store.ui_command(Path(), port or 5000)
    os.execvpe(command[0], command, mlflow_store.ENVIRONMENT | os.environ)
