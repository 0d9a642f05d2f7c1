"""Files that are written whole or not at all, their checksums, and paths as settings give them."""

import hashlib
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from zipfile import BadZipFile

from maskdm.runtime.errors import MaskDMError

if TYPE_CHECKING:
    import pandas as pd


CHECKSUMS = "SHA256SUMS"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path, pattern: str = "*", later: Mapping[str, bytes] = {}) -> None:
    """Write `folder/SHA256SUMS`, which `sha256sum -c` reads, too: of the files in it and below.

    Args:
        folder: what is in it is complete.
        pattern: of the names of the files.
        later: what will be written after this, by name: the file that says that all is there.

    Raises:
        MaskDMError: it cannot be written.
    """
    files = sorted(path for path in folder.rglob(pattern) if path.is_file() and path != folder / CHECKSUMS)
    sums = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    sums |= {name: hashlib.sha256(content).hexdigest() for name, content in later.items()}
    write_text(folder / CHECKSUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def check_checksums(folder: Path, remedy: str) -> None:
    """Compare the files below `folder` with what `write_checksums` wrote; an older version wrote nothing.

    Raises:
        MaskDMError: a file is missing or is not what it was.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        return
    with reading(path, remedy):
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in path.read_text("utf-8").splitlines())}
    for name, digest in (sums or {CHECKSUMS: ""}).items():  # a power cut may have left an empty one
        with reading(folder / name, remedy):
            found = file_sha256(folder / name)
        if found != digest:
            raise MaskDMError(f"{folder / name}: damaged: it is not what was written; {remedy}")


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite database; `?`, `%` and the like in its path are quoted.

    It names the driver, since of `sqlite:///...` MLflow makes the folder, by its quoted name.
    """
    from sqlalchemy import URL  # here: it takes a while, and few callers need it

    return URL.create("sqlite+pysqlite", database=str(path.resolve())).render_as_string()


def sqlite_path(url: str) -> Path:
    """The file of a SQLite database's URL."""
    from sqlalchemy import make_url

    return Path(make_url(url).database or "")


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place: a kill leaves the old file or the new.

    Raises:
        MaskDMError: the file cannot be written (a full disk, say). What was at `path` stays.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with folders_above(path):
            try:
                with temporary.open("wb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise
    except (OSError, RuntimeError) as error:  # torch.save wraps what the file raised into a RuntimeError
        raise MaskDMError(f"{path}: cannot write it: {reason(error)}") from error


@contextmanager
def folders_above(path: Path) -> Iterator[None]:
    """Make the folders above `path`; after an error in the `with` block those that were made are gone again, if empty.

    Raises:
        OSError: one cannot be made.
    """
    missing = [folder for folder in path.parents if not folder.exists()]  # the deepest first
    try:
        if missing:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:  # Ctrl-C, too
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill in the `with` block; then it becomes `folder`. After an error nothing is there.

    Raises:
        MaskDMError: `folder` exists, or cannot be written.
    """
    if folder.exists():
        raise MaskDMError(f"{folder}: exists; allowed: a new folder")
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        with folders_above(folder):
            shutil.rmtree(temporary, ignore_errors=True)  # left by a kill
            try:
                temporary.mkdir()
                yield temporary
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise MaskDMError(f"{folder}: cannot write it: {reason(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write all of a text, as UTF-8, or nothing.

    Raises:
        MaskDMError: the file cannot be written.
    """
    write_atomically(path, lambda file: file.write(text.encode()))


def write_csv(path: Path, frame: "pd.DataFrame") -> None:
    """Write all of a table or nothing, without its index. Ten digits are more than any measurement has.

    Raises:
        MaskDMError: the file cannot be written.
    """
    write_text(path, frame.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn what a missing, torn or otherwise damaged file raises in the `with` block into one line.

    Args:
        path: what is read.
        remedy: what the user should do.

    Raises:
        MaskDMError: it names the file, the cause and the remedy.
    """
    try:
        yield
    except FileNotFoundError:
        raise MaskDMError(f"{path}: no such file; {remedy}") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError, BadZipFile, zlib.error) as error:
        raise MaskDMError(f"{path}: cannot read it: {reason(error)}; {remedy}") from None


def reason(error: BaseException) -> str:
    """The cause on one line: the OS's own words ("No space left on device") where a library has wrapped them."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    text = cause.strerror if isinstance(cause, OSError) else str(error)
    return " ".join(str(text).split()) or type(error).__name__


def expanded(text: str, key: str) -> Path:
    """A path as the setting `key` gives it, with environment variables and `~` replaced.

    Raises:
        MaskDMError: a variable is not set, there is no such user, or nothing is left.
    """
    for name in re.findall(r"\$(\w+|\{[^}]*\})", text, re.ASCII):  # what expandvars takes for a variable
        if name.strip("{}") not in os.environ:
            raise MaskDMError(f"{key}={text}: the environment variable {name.strip('{}')} is not set")
    path = os.path.expanduser(os.path.expandvars(text))
    if path.startswith("~"):
        raise MaskDMError(f"{key}={text}: there is no home folder {path.split('/')[0]}")
    if not path.strip():
        raise MaskDMError(f"{key}={text}: allowed: a path, this is empty")
    return Path(path)
