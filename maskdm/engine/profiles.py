"""Profiles: whole files of settings, of which one is `params.yaml`. Edits that no profile holds are never lost."""

import os
from contextlib import suppress
from pathlib import Path

from maskdm.config.params import Params
from maskdm.config.reading import load_params
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import write_atomically, write_text
from maskdm.runtime.paths import PARAMS, PROFILES, ROOT


def profile_path(name: str) -> Path:
    """`profiles/<name>.yaml`.

    Raises:
        MaskDMError: there is none.
    """
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise MaskDMError(f"profile {name}: there is no {path}; allowed: {', '.join(profile_names())}")
    return path


def profile_names(root: Path = ROOT) -> list[str]:
    """The profiles of a project, sorted."""
    return sorted(path.stem for path in (root / PROFILES).glob("*.yaml"))


def select_profile(name: str) -> Params:
    """Copy a profile to `params.yaml`.

    Raises:
        MaskDMError: there is no such profile, it is not valid, or `params.yaml` holds edits that would be lost.
    """
    path = profile_path(name)
    params = load_params(path)
    check_no_edits()
    write_atomically(PARAMS, lambda file: file.write(path.read_bytes()))
    return params


def add_profile(name: str, text: str) -> Path:
    """Write a new profile and copy it to `params.yaml`: both, or neither; returns the profile's path.

    Raises:
        MaskDMError: a file cannot be written, or as `check_new` and `check_no_edits` say.
    """
    check_new(name)
    check_no_edits()
    path = PROFILES / f"{name}.yaml"
    try:
        write_text(path, text)
        write_text(PARAMS, text)
    except BaseException:  # Ctrl-C, too
        with suppress(OSError):
            path.unlink()
        raise
    return path


def check_new(name: str) -> None:
    """Refuse a name that a profile has, and folders that cannot be written.

    Raises:
        MaskDMError: so it is.
    """
    path = PROFILES / f"{name}.yaml"
    if os.path.lexists(path):
        raise MaskDMError(f"{path} exists; allowed: another --name, or delete it first")
    for folder in (PROFILES, ROOT):
        if not os.access(folder, os.W_OK):
            raise MaskDMError(f"{folder.absolute()}: may not be written; allowed: a project of your own")


def check_no_edits() -> None:
    """Refuse to go on where `params.yaml` is no profile's copy.

    Raises:
        MaskDMError: so it is.
    """
    if PARAMS.is_file() and PARAMS.read_bytes() not in {p.read_bytes() for p in PROFILES.glob("*.yaml")}:
        raise MaskDMError(
            f"{PARAMS} has edits that no file in {PROFILES}/ holds; keep them as {PROFILES}/<name>.yaml, "
            f"or undo them (git checkout {PARAMS}), then select again"
        )
