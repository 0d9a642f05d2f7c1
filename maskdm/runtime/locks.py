"""One process at a time: a command that was killed may have left one of its own at work."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from maskdm.runtime.errors import MaskDMError


@contextmanager
def locked(lock: Path, folder: Path) -> Iterator[None]:
    """Hold the file `lock`, which stands for the work in `folder`.

    Raises:
        MaskDMError: another process holds it.
    """
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise MaskDMError(f"{folder}: another process is at this stage; wait for it, or stop it first") from None
    try:
        yield
    finally:
        held.release()
