"""Where a command works: the project that the working folder lies in, and its profiles."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import PARAMS, PROFILES

if TYPE_CHECKING:
    from maskdm.config.params import Params


def find_project() -> Path | None:
    """The root of the project that the working folder lies in; None: it lies in none."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / PROFILES).is_dir():
            return folder
    return None


def enter_project() -> None:
    """Go to the root of the project that the working folder lies in.

    Raises:
        MaskDMError: it lies in none.
    """
    found = find_project()
    if found is None:
        raise MaskDMError(
            f"{Path.cwd()}: no project here, nor in a folder above; allowed: one with dvc.yaml and {PROFILES}/"
        )
    os.chdir(found)


def read_params(profile: str | None = None) -> "Params":
    """The settings of a profile, or of `params.yaml`.

    Raises:
        MaskDMError: there is no such profile, or it is not valid.
    """
    from maskdm.config.reading import load_params  # here: `--help` does not wait for it
    from maskdm.engine.profiles import profile_path

    return load_params(PARAMS if profile is None else profile_path(profile))


# --- what the shell proposes --------------------------------------------------------------------------------


def complete_profile(incomplete: str) -> Iterator[str]:
    """Names of profiles."""
    from maskdm.engine.profiles import profile_names

    root = find_project()
    yield from (name for name in (profile_names(root) if root else ()) if name.startswith(incomplete))


def complete_arm(incomplete: str) -> Iterator[str]:
    """Arms of `params.yaml`."""
    from ruamel.yaml import YAML

    root = find_project()
    try:
        arms = YAML(typ="safe").load((root / PARAMS).read_text(encoding="utf-8"))["arms"] if root else ()
    except Exception:  # whatever is wrong with the file, the command itself will say
        return
    yield from (name for name in arms if name.startswith(incomplete))
