"""The command `maskdm`: choose a profile, see what it will cost, look at its runs. `dvc repro` runs the pipeline."""

import argparse
import os
import sys
from pathlib import Path

from maskdm.config.reading import load_params, recipe_of
from maskdm.engine.profiles import PARAMS, PROFILES, profile_path, select_profile
from maskdm.runtime.errors import MaskDMError, exit_with_one_line


def main() -> None:
    """Parse the command line and run one command in the root of the project that the working folder lies in."""
    parser = argparse.ArgumentParser(prog="maskdm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="a profile for your own images, fitted to them, this machine and your time")
    init.add_argument("images", type=Path, help="a folder, or a zip or tar archive")
    init.add_argument("--name", help="of the profile; without it, that of the folder")
    init.add_argument("--hours", type=float, default=1.0, help="that `dvc repro` may take, about (1)")
    init.add_argument("--image-size", type=int, help="pixels a side; without it, what suits images and machine")
    advise = commands.add_parser("advise", help="how much context each mask leaves, on the prepared images")
    advise.add_argument("profile", nargs="?", help="a name in profiles/; without it, params.yaml")
    plan = commands.add_parser("plan", help="steps, images, FLOPs and estimated time of every arm; trains nothing")
    plan.add_argument("profile", nargs="?", help="a name in profiles/; without it, params.yaml")
    plan.add_argument("--brief", action="store_true", help="only what is left to do, and about how long that takes")
    profile = commands.add_parser("profile", help="make a profile the one that `dvc repro` runs")
    profile.add_argument("profile", help="a name in profiles/")
    search = commands.add_parser("search", help="the stage `search` with as many workers as you say")
    search.add_argument("--large", action="store_true", help="the study's stage `large_search` instead")
    search.add_argument("--workers", type=int, help="processes that work at the study; without it, one a GPU or core")
    search.add_argument("--join", action="store_true", help="only work at the study that another machine has begun")
    commands.add_parser("sync", help="rebuild MLflow's store from records/ (after a clone or a DVC cache hit)")
    commands.add_parser("ui", help="MLflow's UI on the project's runs")
    weights = commands.add_parser("import-weights", help="a checkpoint of MaskDM's authors as a network of this suite")
    weights.add_argument("file", type=Path, help="what their training saved, model-<n>.pt")
    weights.add_argument("folder", type=Path, help="where to write config.json and safetensors; a new one")
    weights.add_argument("--num-heads", type=int, help="attention heads, of a width that is not in the paper")
    arguments = parser.parse_args()
    with exit_with_one_line():
        if arguments.command == "import-weights":  # needs no project
            return import_weights(arguments.file, arguments.folder, arguments.num_heads)
        images = arguments.images.absolute() if arguments.command == "init" else None  # as seen from the working folder
        enter_project()
        match arguments.command:
            case "init":
                assert images is not None
                add_own_images(images, arguments.name, arguments.hours, arguments.image_size)
            case "advise":
                print_advice(arguments.profile)
            case "plan":
                print_plan(arguments.profile, arguments.brief)
            case "profile":
                select(arguments.profile)
            case "search":
                run_search(arguments.large, arguments.workers, arguments.join)
            case "sync":
                sync()
            case "ui":
                open_ui()


def enter_project() -> None:
    """Go to the root of the project that the working folder lies in.

    Raises:
        MaskDMError: it lies in none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / PROFILES).is_dir():
            os.chdir(folder)
            return
    raise MaskDMError(f"{here}: no project here, nor in a folder above; allowed: one with dvc.yaml and {PROFILES}/")


def add_own_images(images: Path, name: str | None, hours: float, image_size: int | None) -> None:
    """Write a profile for images, select it, and say what was found and what it will cost."""
    from maskdm.engine.init import init
    from maskdm.runtime.device import choose_device  # here: no other command waits for torch

    print("\n".join(init(images, choose_device(), name, hours, image_size)))


def print_advice(profile: str | None) -> None:
    """Print what each mask leaves and costs, how that agrees with the study, and what was gained here."""
    params = load_params(PARAMS if profile is None else profile_path(profile))
    recipe = recipe_of(params)
    from maskdm.engine.agreement import advice_and_measured  # here: no other command waits for torch

    print(advice_and_measured(params, recipe))


def print_plan(profile: str | None, brief: bool) -> None:
    """Print the dry run of a profile, or of `params.yaml`: all of it, or only what it comes to."""
    params = load_params(PARAMS if profile is None else profile_path(profile))
    recipe = recipe_of(params)
    from maskdm.engine.dry_run import dry_run, table
    from maskdm.engine.outlook import outlook
    from maskdm.runtime.device import choose_device  # here: no other command waits for torch

    device = choose_device()
    if not brief:
        print(table(dry_run(params, recipe, device)))
    print(outlook(params, recipe, device))


def select(name: str) -> None:
    """Copy a profile to `params.yaml`, and say what it compares."""
    params = select_profile(name)
    print(f"{PARAMS} is now {profile_path(name)} ({', '.join(params.arms)}); run it with `dvc repro`", file=sys.stderr)


def run_search(large: bool, workers: int | None, join: bool) -> None:
    """Replace this process by a search; `dvc commit -f` then tells DVC of it."""
    given = {"--large": large, f"--workers={workers}": workers is not None, "--join": join}
    command = [sys.executable, "-m", "pipeline.search", *(option for option, wanted in given.items() if wanted)]
    os.execv(command[0], command)


def import_weights(file: Path, folder: Path, num_heads: int | None) -> None:
    """Write the authors' network as a snapshot, and say what it is."""
    from maskdm.engine.import_weights import import_weights  # here: no other command waits for it

    print(import_weights(file, folder, num_heads))


def sync() -> None:
    """Bring MLflow's store up to the record files."""
    from maskdm.tracking import mlflow_store

    print(f"{mlflow_store.sync(Path())} runs added or completed")


def open_ui() -> None:
    """Replace this process by MLflow's UI."""
    from maskdm.tracking import mlflow_store

    print(f"The arms: {mlflow_store.UI_PAGE}", flush=True)
    command = mlflow_store.ui_command(Path())
    os.execvpe(command[0], command, mlflow_store.ENVIRONMENT | os.environ)
