"""`search`: the stage `search` with as many workers as you say."""

import os
import sys
from typing import Annotated

import typer

from maskdm.cli.project import enter_project


def search(
    large: Annotated[bool, typer.Option("--large", help="The study's stage `large_search` instead.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes that work at the study; without it, one a GPU or core.")
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Only work at the study that another machine has begun.")
    ] = False,
) -> None:
    """Look for the best pre-training with Optuna, with as many workers as you say.

    `dvc repro search` does the same with one worker a GPU or core. It goes on where it was stopped.

    ```sh
    maskdm search --workers 4 && dvc commit -f search
    maskdm search --join     # on further machines; MASKDM_SEARCH_STORAGE names the database that they share
    ```
    """
    enter_project()
    given = {"--large": large, f"--workers={workers}": workers is not None, "--join": join}
    command = [sys.executable, "-m", "pipeline.search", *(option for option, wanted in given.items() if wanted)]
    os.execv(command[0], command)
