"""A published page, written again in a copy of the project, and compared with what is there byte for byte."""

import os
import shutil
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import ROOT

COPIED = ("params.yaml", "profiles", "study", "records", "reports")
LINKED = ("data", "runs")  # read alone


@dataclass(frozen=True)
class Rendering:
    """A page with its tables and figures, as this code writes them from the records that are here."""

    page: str  # below `reports/`
    files: int = 0  # that were written
    differing: tuple[str, ...] = ()  # those of them that are not what is published
    obstacle: str | None = None  # why it cannot be written here


def render_again(page: str, write: Callable[[], Any]) -> Rendering:
    """Write a page in a copy of the project. For a process of its own: it changes the working folder on the way.

    Args:
        page: its file below `reports/`.
        write: what writes it and all that belongs to it below `reports/` of the working folder.
    """
    with TemporaryDirectory(prefix="maskdm-") as name:
        published, copy = (ROOT / "reports").resolve(), Path(name) / "reports"
        for source in filter(Path.exists, map(ROOT.joinpath, COPIED)):
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, Path(name) / source)  # with their times
        for source in filter(Path.exists, map(ROOT.joinpath, LINKED)):
            (Path(name) / source).symlink_to(source.resolve())
        before = _times(copy)
        try:
            with chdir(name):
                write()
        except MaskDMError as error:
            return Rendering(page, obstacle=str(error))
        written = [path for path, time in _times(copy).items() if before.get(path) != time]
        differing = [path for path in written if _bytes(copy / path) != _bytes(published / path)]
        return Rendering(page, len(written), tuple(sorted(differing)))


def _times(folder: Path) -> dict[str, tuple[int, int]]:
    """File -> what changes when it is written, even with the same bytes."""
    found = {path.relative_to(folder).as_posix(): os.stat(path) for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
