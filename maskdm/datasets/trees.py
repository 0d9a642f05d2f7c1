"""The files of a data set that the user has placed: a folder, or a zip or tar archive, read the same way."""

import errno
import io
import json
import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Self

from tqdm import tqdm

from maskdm.datasets.left_out import HIDDEN, NOT_IMAGES, SECOND_NAMES, UNREADABLE, LeftOut
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reason
from maskdm.runtime.progress import bar_interval
from maskdm.runtime.units import si

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LONGEST_LINK = 4096  # bytes of a path on Linux
# Of macOS, network drives and Windows: they hold thumbnails of the images, and deleted ones. In small letters.
SYSTEM_FOLDERS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"}
ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
UNIX = 3  # the system that made a member of a zip
LONGEST_HEADER = 1 << 20  # bytes of a name or of notes in a tar archive
PIECE = 4096  # packed bytes that bzip2 and LZMA unpack at a time: of bzip2 to 90 MB at most
UNPACKED, TIMES = 10 << 30, 100  # bytes that a tar archive may unpack to, or times its own size: images do not compress
LARGEST = 1 << 30  # bytes of an image's file; the pixels that Pillow allows (`MAX_IMAGE_PIXELS`) take less as they are


class Entry(NamedTuple):
    """A file as it was listed."""

    size: int  # bytes
    identity: Hashable  # the same for all names of one file
    is_link: bool  # whether the name, or a folder in it, is a symbolic link
    modified: int = 0  # nanoseconds; 0 in an archive


@dataclass(frozen=True)
class Tree:
    """Files by their names below `path`, a folder or an archive; names have forward slashes."""

    path: Path
    files: dict[str, Entry]
    file: Callable[[str], Callable[[], bytes]]  # name -> what reads the file, in another process, too
    left_out: LeftOut

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            Exception: nearly any, if it or the archive is damaged.
        """
        return self.file(name)()

    def once(self, names: list[str], first: Callable[[str], bool]) -> list[str]:
        """Sort names and keep one a file: those that are to be `first`, then its own before those of links."""
        kept: dict[Hashable, str] = {}
        for name in sorted(names, key=lambda name: (not first(name), self.files[name].is_link, name)):
            if kept.setdefault(self.files[name].identity, name) != name:
                self.left_out.add(SECOND_NAMES, name)
        return sorted(kept.values())


def open_tree(place: Path, wanted: Callable[[str], bool], scratch: Path) -> Tree | None:
    """List the files of an archive, of a folder, or of the one archive in a folder. None: there is no such place.

    Args:
        place: a folder or an archive.
        wanted: tells by its name whether a file belongs to the data; without any, a folder's archive is opened.
        scratch: an empty folder to unpack a tar archive in, which cannot be read in any order otherwise.

    Raises:
        MaskDMError: the archive is damaged or of an unknown kind, or the folder holds several.
        OSError: the folder may not be read. One inside of it is left out.
    """
    if not place.is_dir():
        return _archive(place, scratch, LeftOut()) if place.exists() else None
    tree = open_folder(place)
    if any(map(wanted, tree.files)):
        return tree
    archives = sorted(name for name in tree.files if "/" not in name and _is_archive(place / name))
    if len(archives) > 1:
        raise MaskDMError(f"{place}: several archives ({', '.join(archives)}); set data.root to the one to read")
    if not archives:
        return tree
    for name in tree.files.keys() - set(archives):
        tree.left_out.add(NOT_IMAGES, name)
    return _archive(place / archives[0], scratch, tree.left_out)


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Tell what systems leave behind, such as macOS's `._image.jpg`: named like an image, but none of the data."""
    parts = [part for part in PurePosixPath(name).parts if part != ".."]
    return any(part.startswith(".") or part.lower() in SYSTEM_FOLDERS for part in parts)


def _archive(path: Path, scratch: Path, left_out: LeftOut) -> Tree:
    if not _is_archive(path):
        raise MaskDMError(f"{path}: allowed: a folder or an archive ({' '.join(ARCHIVE_SUFFIXES)})")
    try:
        return _zip(path, left_out) if path.suffix.lower() == ".zip" else _tar(path, scratch, left_out)
    except MaskDMError:
        raise
    except Exception as error:  # damaged archives raise nearly anything
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the archive's
            raise
        said = str(error).splitlines() or [type(error).__name__]  # of tarfile: a line for each compression it tried
        raise MaskDMError(f"{path}: truncated, damaged, or no archive ({said[0].rstrip(':')})") from None


# --- folders ------------------------------------------------------------------------------------------------


def open_folder(path: Path) -> Tree:
    """List the files of a folder, as they are.

    Raises:
        OSError: the folder may not be read. One inside of it is left out.
    """
    left_out = LeftOut()
    return Tree(path, _walk(path, left_out), lambda name: partial(_read_file, path, name), left_out)


def _walk(root: Path, left_out: LeftOut) -> dict[str, Entry]:
    """List all files below `root`, those in linked folders too, since images often lie on another disk.

    A folder is read once, under its own name before those of links; a link to a folder above it is not followed.
    """
    files: dict[str, Entry] = {}
    seen = {_identity(parent.stat()) for parent in root.resolve().parents}
    folders, links = [("", False)], deque[str]()
    bar = tqdm(desc=f"list {root.name}", unit=" files", delay=2, leave=False)  # a million files take a while
    while folders or links:
        folder, is_link = folders.pop() if folders else (links.popleft(), True)
        try:
            identity = _identity((root / folder).stat())
            if identity in seen:
                left_out.add(SECOND_NAMES, f"{folder}/")
                continue
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            if not folder:
                raise
            left_out.add(UNREADABLE, f"{folder}/", reason(error))
            continue
        seen.add(identity)
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if is_hidden(entry.name):
                left_out.add(HIDDEN, f"{name}/" if _is_folder(entry) else name)
            elif not _is_folder(entry):
                files[name] = _entry(entry, name, is_link)
                bar.update()
            elif entry.is_symlink():
                links.append(name)
            else:
                folders.append((name, is_link))
    bar.close()
    return files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be read
        return False


def _entry(entry: os.DirEntry[str], name: str, is_link: bool) -> Entry:
    try:
        status = entry.stat()
    except OSError:  # a link to nothing: like a damaged image, it is named when it is read
        return Entry(0, name, True)
    return Entry(status.st_size, _identity(status), is_link or entry.is_symlink(), status.st_mtime_ns)


def _identity(status: os.stat_result) -> int:
    return status.st_dev << 64 | status.st_ino  # in one number, since there may be millions


def _read_file(folder: Path, name: str) -> bytes:
    """Read a regular file: a pipe would be waited for, for ever, and a device might do anything."""
    path = folder / name
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    require_size(status.st_size)
    return path.read_bytes()


def require_size(size: int) -> None:
    """Refuse to read what is too large for an image: it may fill the memory.

    Raises:
        OSError: so it is.
    """
    if size > LARGEST:
        raise OSError(errno.EFBIG, too_large(size))


def too_large(size: int) -> str:
    """Why a file of so many bytes is not read."""
    return f"{si(size, 'B')} are too many for an image; allowed: {si(LARGEST, 'B')}"


# --- archives -----------------------------------------------------------------------------------------------


def _zip(path: Path, left_out: LeftOut) -> Tree:
    archive = zipfile.ZipFile(path)
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = _zip_name(info)
        if name.endswith("/"):
            continue
        if info.compress_type not in ZIP_METHODS or info.flag_bits & 1:  # Windows packs more than 2 GB like that
            raise MaskDMError(
                f"{path}: {name} is encrypted, or packed by a method that Python lacks; "
                "unpack the archive with another program, and set data.root to the folder"
            )
        if name in members:  # the archive was appended to: the last one counts, as where it is unpacked
            left_out.add(SECOND_NAMES, name)
        members[name] = info
    contents = {name: _linked(archive, members, name) for name in members}
    files, readable = {}, {}
    for name, content in contents.items():
        if is_hidden(name):
            left_out.add(HIDDEN, name)
        elif content is None:
            left_out.add(UNREADABLE, name, "a link to no file of the archive")
        else:
            readable[name] = content
            files[name] = Entry(content.file_size, content.header_offset, content is not members[name])
    archive.close()
    _unlisted.cache_clear()  # of an archive that was here before
    return Tree(path, files, lambda name: partial(_read_member, path, readable[name]), left_out)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """With forward slashes, as the format demands: Windows writes others. A folder's ends with one."""
    name = info.filename if info.create_system == UNIX else info.filename.replace("\\", "/")
    return str(PurePosixPath(name.lstrip("/"))) + "/" * name.endswith("/")


def _read_member(path: Path, info: zipfile.ZipInfo) -> bytes:
    require_size(info.file_size)
    return _content(_unlisted(path), info)


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The bytes of a member, no more of them than it states: zipfile itself first unpacks all there are."""
    limited = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    with archive.open(info) as file:
        return b"".join(iter(partial(file.read, max(1, info.file_size) if limited else PIECE), b""))


@lru_cache(maxsize=1)
def _unlisted(path: Path) -> zipfile.ZipFile:
    """An archive to read known members of: each process that decodes would list a million names again."""
    archive = zipfile.ZipFile(io.BytesIO(b"PK\5\6" + bytes(18)))  # an empty one
    archive.fp = path.open("rb")
    return archive


def _linked(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str) -> zipfile.ZipInfo | None:
    """The member itself, or the one that it links to, in one step; None: there is no such one."""
    if not stat.S_ISLNK(members[name].external_attr >> 16):
        return members[name]
    if members[name].file_size > LONGEST_LINK:
        return None
    target = _inside(name, os.fsdecode(_content(archive, members[name])))
    return members.get(target) if target else None


def _tar(path: Path, scratch: Path, left_out: LeftOut) -> Tree:
    """Unpack an archive, unless a run that was killed later has."""
    root, note = Path(os.path.realpath(scratch)) / "unpacked", scratch / "unpacked.json"
    status = path.stat()
    archive = [os.path.realpath(path), status.st_size, status.st_mtime_ns]
    unpacked = json.loads(note.read_bytes()) if note.is_file() else {}
    if unpacked.get("archive") != archive:
        note.unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)
        unpacked = {"archive": archive, "left_out": _unpack_all(path, root).names()}
        note.write_text(json.dumps(unpacked), encoding="utf-8")
    left_out.extend(unpacked["left_out"])
    return Tree(path, _walk(root, left_out), lambda name: partial(_read_file, root, name), left_out)


def _unpack_all(path: Path, root: Path) -> LeftOut:
    """Unpack an archive, links last: then none can lead a file to a place outside of `root`."""
    left_out, links = LeftOut(), []
    most, unpacked = max(UNPACKED, TIMES * path.stat().st_size), 0
    root.mkdir()
    with tarfile.open(path, tarinfo=Member) as archive:
        members = tar_members(archive)
        for member in tqdm(members, desc=f"unpack {path.name}", unit="file", mininterval=bar_interval()):
            member.name = posixpath.normpath(member.name)
            unpacked += member.size
            if unpacked > most:
                raise tarfile.TarError(f"it unpacks to more than {si(most, 'B')}")
            if member.issym() or member.islnk():
                links.append(member)
            elif member.isfile() and member.size > LARGEST:
                left_out.add(UNREADABLE, member.name, too_large(member.size))
            elif member.isfile():
                _unpack(archive, member, root, left_out)
            elif not member.isdir():
                left_out.add(UNREADABLE, member.name, "not a regular file")
        check_end(archive)
    for member in links:
        _link(member, root, left_out)
    return left_out


class Member(tarfile.TarInfo):
    """A member whose header is not trusted: tarfile reads names of any length into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header."""
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in LONG_NAMES and member.size > LONGEST_HEADER):
            raise tarfile.ReadError("damaged header")
        return member


LONG_NAMES = {
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
}


def tar_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All members of an archive, none of which is kept.

    Raises:
        ReadError: one leads back in the archive, in which tarfile would go in a circle.
    """
    before = 0
    while member := archive.next():
        archive.members.clear()  # type: ignore[attr-defined]
        if archive.offset <= before or member.size < 0:
            raise tarfile.ReadError("damaged header")
        before = archive.offset
        yield member


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path, left_out: LeftOut) -> None:
    target = root / member.name
    if not _leads_into(root, target):
        raise tarfile.TarError(f"{member.name} points outside of it")
    if target.exists():  # an archive that was appended to: the last one counts
        left_out.add(SECOND_NAMES, member.name)
    content = archive.extractfile(member)
    assert content is not None  # a regular file has content
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)


def _link(member: tarfile.TarInfo, root: Path, left_out: LeftOut) -> None:
    """Make a link to a file of the archive: GNU tar stores as one what is the second name of a file."""
    target = _inside(member.name if member.issym() else "", member.linkname)
    place = root / member.name
    if target is None or not _leads_into(root, place):
        left_out.add(UNREADABLE, member.name, "a link that points outside of the archive")
        return
    if os.path.lexists(place):
        left_out.add(SECOND_NAMES, member.name)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if member.islnk() and (root / target).is_file():
        os.link(root / target, place)
    else:
        place.symlink_to(root / target)


def _leads_into(root: Path, path: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(root)


def _inside(link: str, target: str) -> str | None:
    """The name in the archive of what `link` points to; None: it lies outside."""
    name = posixpath.normpath(posixpath.join(posixpath.dirname(link), target))
    return None if name.startswith("/") or name.split("/")[0] == ".." else name


def check_end(archive: tarfile.TarFile) -> None:
    """Refuse a damaged header: tarfile takes it for the end, and leaves out what follows without a word."""
    file = archive.fileobj
    assert file is not None  # the archive is open
    file.seek(archive.offset)
    if any(file.read(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError("damaged header")
