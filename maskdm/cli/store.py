"""`open`, `ui` and `sync`: the page, and MLflow's view of the records."""

import os
from pathlib import Path

from maskdm.cli.output import AsJson, print_json
from maskdm.cli.project import enter_project
from maskdm.runtime.browser import open_page
from maskdm.runtime.paths import INDEX


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

    What the store has already stays. `MLFLOW_TRACKING_URI` names another store than `mlflow.db`.

    ```sh
    maskdm sync && maskdm ui
    ```
    """
    enter_project()
    from maskdm.tracking import mlflow_store

    changed = mlflow_store.sync(Path())
    if as_json:
        print_json({"runs_added_or_completed": changed})
        return
    print(f"{changed} runs added or completed")


def ui() -> None:
    """Open MLflow's UI on the project's runs, and print the address of the table of arms.

    Ctrl-C ends it.

    ```sh
    maskdm ui
    ```
    """
    enter_project()
    from maskdm.tracking import mlflow_store

    print(f"The arms: {mlflow_store.UI_PAGE}", flush=True)
    command = mlflow_store.ui_command(Path())
    os.execvpe(command[0], command, mlflow_store.ENVIRONMENT | os.environ)
