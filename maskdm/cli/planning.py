"""`plan` and `profile`: what a profile will do, and which one `dvc repro` runs."""

import sys
from typing import Annotated

import typer

from maskdm.cli.output import AsJson, print_json, print_table
from maskdm.cli.project import complete_profile, enter_project, read_params
from maskdm.runtime.paths import PARAMS


def plan(
    profile: Annotated[
        str | None,
        typer.Argument(help="A name in `profiles/`; without it, `params.yaml`.", autocompletion=complete_profile),
    ] = None,
    brief: Annotated[bool, typer.Option("--brief", help="Only what is left to do, and how long that takes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what every arm will train and how long that takes here. Nothing is trained.

    The time comes from a burst of real training steps, about two seconds for each kind of phase.

    ```sh
    maskdm plan              # params.yaml: steps, images, FLOPs, time of every phase
    maskdm plan celeba64     # another profile
    maskdm plan --brief      # what `dvc repro` has left to do, in one line
    maskdm plan --json | jq '.phases[].seconds'
    ```
    """
    enter_project()
    params = read_params(profile)
    from maskdm.config.reading import recipe_of

    recipe = recipe_of(params)
    from maskdm.engine.dry_run import as_json as phases_as_json
    from maskdm.engine.dry_run import as_table, dry_run
    from maskdm.engine.outlook import outlook
    from maskdm.runtime.device import choose_device  # here: no other command waits for torch

    device = choose_device()
    phases = [] if brief else dry_run(params, recipe, device)
    said = outlook(params, recipe, device)
    if as_json:
        print_json({"phases": phases_as_json(phases), "outlook": said})
        return
    if phases:
        print_table(as_table(phases))
    print(said)


def profile(
    name: Annotated[str, typer.Argument(help="A name in `profiles/`.", autocompletion=complete_profile)],
    as_json: AsJson = False,
) -> None:
    """Make a profile the one that `dvc repro` runs: copy it to `params.yaml`.

    Edits of `params.yaml` that no profile holds are not overwritten.

    ```sh
    maskdm profile celeba64
    ```
    """
    enter_project()
    from maskdm.engine.profiles import profile_path, select_profile

    params = select_profile(name)
    if as_json:
        print_json({"profile": str(profile_path(name)), "arms": list(params.arms)})
        return
    print(f"{PARAMS} is now {profile_path(name)} ({', '.join(params.arms)}); run it with `dvc repro`", file=sys.stderr)
