"""LMDB: a database whose values are image files, as LSUN is published. Values are read where they are.

Yu et al. 2015, https://github.com/fyu/lsun
"""

import errno
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import lmdb

from maskdm.config.params import Data
from maskdm.datasets import folders, lmdb_check
from maskdm.datasets.encoded import encoded_images
from maskdm.datasets.raw import RawImages, raw_place
from maskdm.datasets.trees import require_size
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import file_sha256, reason

FILE = "data.mdb"


def load_lsun(data: Data, raw: Path, scratch: Path) -> RawImages:
    """LSUN from its LMDB, or from the images that were exported from it: the same ones in the same order.

    Raises:
        MaskDMError: there are no images, or they are damaged.
    """
    return load(data, raw, scratch) if _databases(raw_place(data, raw)) else folders.load(data, raw, scratch)


def load(data: Data, raw: Path, scratch: Path) -> RawImages:
    """List every value of the database `data.root` or `raw/lmdb`, or of the one in a folder below it, sorted by key.

    Raises:
        MaskDMError: there is no database, several, an empty or a damaged one.
    """
    place = raw_place(data, raw)
    found = _databases(place)
    if not found:
        raise MaskDMError(f"{place}: no {FILE}; place there: the folder of an LMDB; or set data.root to it")
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise MaskDMError(f"{place}: several LMDBs ({names}); set data.root to the one to read")
    (path,) = found
    keys = _keys(path)
    if not keys:
        raise MaskDMError(f"{path}: an empty LMDB; allowed: one whose values are image files")
    return encoded_images(
        data,
        file=lambda index: partial(_read, path, keys[index]),
        names=_Names(keys),
        source=f"LMDB {path}",
        files={FILE: file_sha256(path / FILE)},
    )


class _Names(Sequence[str]):
    """The keys as text."""

    def __init__(self, keys: list[bytes]) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.keys[index].decode(errors="surrogateescape")


def _databases(place: Path) -> list[Path]:
    """The folders of databases: `place`, or those directly below it."""
    if not place.is_dir():
        return []
    return sorted(path.parent for path in (*place.glob(FILE), *place.glob(f"*/{FILE}")) if path.is_file())


def _keys(path: Path) -> list[bytes]:
    _environment.cache_clear()  # of a database that was here before
    try:
        environment = _environment(path)
        # LMDB maps the file, and reading beyond its end would kill this process.
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if (path / FILE).stat().st_size < needed:
            raise lmdb.CorruptedError("unexpected end of the file")
        _try(path)
        with environment.begin() as transaction, transaction.cursor() as cursor:
            return list(cursor.iternext(keys=True, values=False))
    except lmdb.Error as error:
        raise MaskDMError(f"{path / FILE}: truncated, damaged, or no LMDB ({reason(error)})") from None


def _try(path: Path) -> None:
    """Let another process read all there is: LMDB trusts the file, and a damaged one may kill whoever reads it.

    Raises:
        CorruptedError: it was killed, or has found damage.
    """
    checked = subprocess.run([sys.executable, lmdb_check.__file__, path], capture_output=True, text=True)
    if checked.returncode:
        raise lmdb.CorruptedError(checked.stdout.strip() or "reading it ends the process")


@lru_cache(maxsize=1)
def _environment(path: Path) -> lmdb.Environment:
    """Each process opens the database once."""
    return lmdb.open(str(path), readonly=True, lock=False, readahead=False, create=False)


def _read(path: Path, key: bytes) -> bytes:
    with _environment(path).begin(buffers=True) as transaction:
        value = transaction.get(key)
        if value is None:
            raise OSError(errno.EIO, "the database has changed")
        require_size(len(value))
        return bytes(value)
