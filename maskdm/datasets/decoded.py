"""Images decoded to fixed places of one file, by all cores, in the order in which they are stored.

Beside the file stands the digest of every image that is in its place. So a run that was killed goes on: what still has
its digest is not decoded again, and what a power cut has torn is.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from itertools import islice
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from maskdm.datasets.duplicates import SIZE, pixel_digest
from maskdm.datasets.left_out import UNREADABLE
from maskdm.datasets.prepared import IMAGES_FILE
from maskdm.datasets.raw import RawImages, UnreadableImageError
from maskdm.runtime.children import end_with_parent
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reason
from maskdm.runtime.interrupts import ctrl_c_is_ours
from maskdm.runtime.progress import bar_interval
from maskdm.runtime.threads import count_cores
from maskdm.runtime.units import si

CHUNK = 32  # images that a process decodes at a time
AHEAD = 4  # chunks of each process that wait or are decoded: what is stored together is then read together
FEW = 2000  # images that this process has decoded before others would have begun
BLOCK = 1 << 22  # bytes that are copied at a time

Read = Callable[[], np.ndarray]  # uint8 [C, H, W]; raises UnreadableImageError
Task = tuple[int, bytes | None, Read]  # place, digest of what should be there already, and how to read it
Found = tuple[int, bytes | str]  # place, and the digest, or why the image cannot be read


class DecodedImages:
    """The images of a data set that were asked for so far.

    Args:
        raw_images: the data set; what cannot be read is added to what it leaves out.
        folder: for the file and the digests. What is there already was left by a run for the same images.
        shape: of every image, `[C, H, W]`.
        header: bytes to leave room for at the start of the file.
        workers: processes that decode; None: one for each core, if there are many images.
    """

    def __init__(
        self, raw_images: RawImages, folder: Path, shape: Sequence[int], header: int, workers: int | None = None
    ) -> None:
        self.raw_images, self.path, self.header = raw_images, folder / IMAGES_FILE, header
        self.size = int(np.prod(shape))
        self.workers = workers
        self._count = 0
        folder.mkdir(exist_ok=True)
        for path in (self.path, folder / "digests"):
            path.touch()
        os.truncate(folder / "digests", raw_images.count * SIZE)
        self._digests = np.memmap(folder / "digests", np.uint8, "r+", shape=(raw_images.count, SIZE))

    def decode(self, indices: Sequence[int]) -> range:
        """Put images to the next places of the file, and return these.

        Raises:
            MaskDMError: the disk has no room for them.
            OSError: it cannot be read or written.
            BrokenProcessPool: a process was killed.
        """
        first = self._count
        self._count += len(indices)
        _reserve(self.path, self.header + self._count * self.size)
        stored = np.argsort(indices).tolist()  # a loader lists images as they are stored
        tasks = (self._task(first + i, indices[i]) for i in stored)
        with tqdm(total=len(indices), desc="prepare", unit="image", mininterval=bar_interval()) as bar:
            for place, found in self._run(tasks, len(indices)):
                if isinstance(found, str):
                    self.raw_images.left_out.add(UNREADABLE, self.raw_images.name(indices[place - first]), found)
                self._digests[place] = 0 if isinstance(found, str) else np.frombuffer(found, np.uint8)
                bar.update()
        return range(first, self._count)

    def digest(self, place: int) -> bytes | None:
        """Of the pixels of the image at a place; None: it cannot be read."""
        digest = self._digests[place].tobytes()
        return digest if any(digest) else None

    def digests(self, places: Sequence[int]) -> bytes:
        """Of the images at `places`, one behind the other."""
        return self._digests[places].tobytes()

    def _task(self, place: int, index: int) -> Task:
        call = self.raw_images.call
        return place, self.digest(place), call(index) if call else partial(self.raw_images.read, index)

    def _run(self, tasks: Iterator[Task], count: int) -> Iterator[Found]:
        decode = partial(_decode, self.path, self.header, self.size)
        chunks = iter(lambda: list(islice(tasks, CHUNK)), [])
        workers = self.workers or (count_cores() if self.raw_images.call and count > FEW else 1)
        if workers == 1:
            for chunk in chunks:
                yield from decode(chunk)
            return
        # Copies of a process that has loaded the libraries, not of this one: they would lack the libraries' threads.
        forkserver.set_forkserver_preload(["maskdm.datasets.prepare"])
        with ctrl_c_is_ours():
            forkserver.ensure_running()
        pool = ProcessPoolExecutor(workers, get_context("forkserver"), _begin)
        running: set[Future[list[Found]]] = set()
        try:
            for chunk in chunks:
                running.add(pool.submit(decode, chunk))
                if len(running) >= AHEAD * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            for future in running:
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def collect(self, places: Sequence[int]) -> Path:
        """A file of the images at `places` alone, in this order, with room for the header.

        It is the file itself if they lie there like that; else the file stays as it is, for a run after a kill.

        Raises:
            OSError: the disk has no room for a second file, or cannot be read or written.
        """
        if list(places) == list(range(len(places))):
            os.truncate(self.path, self.header + len(places) * self.size)
            return self.path
        ordered = self.path.with_suffix(".ordered")
        with self.path.open("rb") as source, ordered.open("wb") as target:
            target.write(bytes(self.header))
            for run in np.split(np.asarray(places), np.flatnonzero(np.diff(places) != 1) + 1):
                source.seek(self.header + int(run[0]) * self.size)
                _copy(source, target, len(run) * self.size)
        return ordered


def _begin() -> None:
    """A process that decodes leaves Ctrl-C to the one that started it, and ends with that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _decode(path: Path, header: int, size: int, tasks: Sequence[Task]) -> list[Found]:
    """Write the images of `tasks` to their places."""
    found: list[Found] = []
    with path.open("r+b") as file:
        for place, kept, read in tasks:
            start = header + place * size
            if kept is not None:
                file.seek(start)
                if pixel_digest(file.read(size)) == kept:
                    found.append((place, kept))
                    continue
            try:
                pixels = read().tobytes()
            except UnreadableImageError as error:
                found.append((place, error.reason))
                continue
            file.seek(start)
            file.write(pixels)
            found.append((place, pixel_digest(pixels)))
    return found


def _reserve(path: Path, size: int) -> None:
    """Grow a file to `size` bytes, and find out now whether the disk has room for them."""
    with path.open("r+b") as file:
        if size <= os.fstat(file.fileno()).st_size:
            return
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                file.truncate(size)
        except OSError as error:
            raise MaskDMError(f"{path.parent}: {reason(error)}: the images take {si(size, 'B')}") from None


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        block = source.read(min(count, BLOCK))
        target.write(block)
        count -= len(block)
