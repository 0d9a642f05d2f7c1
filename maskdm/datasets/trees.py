"""The files of a data set that the user has placed: a folder, or a zip or tar archive, read the same way."""

import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from maskdm.errors import MaskDMError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Tree:
    """Files by their names below `path`, a folder or an archive."""

    path: Path
    names: list[str]  # sorted, with forward slashes
    read: Callable[[str], bytes]
    size: Callable[[str], int]  # bytes


def open_tree(place: Path, wanted: Callable[[str], bool], scratch: Path) -> Tree | None:
    """List the files of an archive, of a folder, or of the one archive in a folder. None: nothing wanted is there.

    Args:
        place: a folder or an archive.
        wanted: tells by its name whether a file belongs to the data; without any, a folder's archive is opened.
        scratch: an empty folder to unpack a tar archive in, which cannot be read in any order otherwise.

    Raises:
        MaskDMError: the archive is damaged or of an unknown kind, or the folder holds several.
    """
    if place.is_dir():
        tree = _folder(place)
        if any(wanted(name) for name in tree.names):
            return tree
        archives = [path for path in sorted(place.iterdir()) if _is_archive(path)]
        if len(archives) > 1:
            found = ", ".join(path.name for path in archives)
            raise MaskDMError(f"{place}: several archives ({found}); set data.root to the one to read")
        if not archives:
            return None
        place = archives[0]
    if not place.exists():
        return None
    if not _is_archive(place):
        raise MaskDMError(f"{place}: allowed: a folder or an archive ({' '.join(ARCHIVE_SUFFIXES)})")
    tree = _zip(place) if place.suffix.lower() == ".zip" else _tar(place, scratch)
    return tree if any(wanted(name) for name in tree.names) else None


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES)


def _is_hidden(name: str) -> bool:
    """Tell what file managers leave behind, such as macOS's `._image.jpg`: named like an image, but none."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _folder(path: Path) -> Tree:
    names = [
        (Path(folder) / file).relative_to(path).as_posix()
        for folder, _, files in os.walk(path, onerror=_fail, followlinks=True)  # the images often lie on another disk
        for file in files
    ]
    return Tree(
        path,
        sorted(name for name in names if not _is_hidden(name)),
        lambda name: (path / name).read_bytes(),
        lambda name: (path / name).stat().st_size,
    )


def _fail(error: OSError) -> None:
    """`os.walk` on its own leaves out a folder that it may not read, without a word."""
    raise error


def _zip(path: Path) -> Tree:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise MaskDMError(f"{path}: truncated or damaged archive ({error})") from None
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    return Tree(
        path,
        sorted(name for name in names if not _is_hidden(name)),
        archive.read,
        lambda name: archive.getinfo(name).file_size,
    )


def _tar(path: Path, scratch: Path) -> Tree:
    root = scratch / "unpacked"
    root.mkdir()
    try:
        with tarfile.open(path) as archive:
            for member in tqdm(archive, desc=f"unpack {path.name}", unit="file"):
                if member.isfile() and not _is_hidden(os.path.normpath(member.name)):
                    _unpack(archive, member, root)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise MaskDMError(f"{path}: truncated or damaged archive ({error})") from None
    tree = _folder(root)
    return Tree(path, tree.names, tree.read, tree.size)


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    target = root / member.name
    if not target.resolve().is_relative_to(root.resolve()):
        raise tarfile.TarError(f"{member.name} points outside of it")
    content = archive.extractfile(member)
    assert content is not None  # a regular file has content
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)
