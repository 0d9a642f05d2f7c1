"""A look at images before anything is spent on them: how many, how large, in colour, damaged, twice, in classes.

All files are listed, and the rest is asked of some of them: a folder may hold a million.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import UnidentifiedImageError

from maskdm.datasets.folders import Listing, list_images
from maskdm.datasets.images import sides, square_pixels
from maskdm.datasets.trees import Tree
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reason
from maskdm.runtime.text import printable
from maskdm.runtime.units import percent

LOOK = 1000  # images that are decoded, at most
LOOK_SECONDS = 10.0  # after which there are no more than `FEWEST`
FEWEST = 50
HASH = 5000  # files that are compared byte by byte, at most
HASH_SECONDS = 5.0
THUMBNAIL = 32  # pixels a side at which colour is looked for
GREY = 8  # largest difference between the colours of a grey pixel: JPEG's rounding makes a few
FEWEST_OF_A_CLASS = 10
MOST_CLASSES = 1000


@dataclass(frozen=True)
class Survey:
    """What was found. Shares and sizes are those of the images that were looked at."""

    count: int  # image files
    heldout: int | None  # of them in `test/`, `val/` and the like; None: there is no such split
    classes: dict[str, int] | None  # images of each, where folders look like classes
    looked_at: int  # in a fixed random order
    unreadable: list[str]  # of those: `name: reason`
    shorter_sides: list[int]  # pixels, of the readable ones
    cropped: list[float]  # shares of the area that the square crop removes
    in_colour: int  # of them
    seconds_an_image: float  # to read, decode and resize one
    copies: int  # files with the bytes of another one, about
    listing_seconds: float  # of all files

    @property
    def side(self) -> int:
        """The median of the shorter sides."""
        return int(np.median(self.shorter_sides))

    @property
    def damaged(self) -> int:
        """About how many of all files cannot be read."""
        return round(self.count * len(self.unreadable) / self.looked_at)

    @property
    def usable(self) -> int:
        """About how many different images can be read."""
        return self.count - self.damaged - self.copies

    def lines(self) -> list[str]:
        """What was found, a fact a line."""
        low, high = min(self.shorter_sides), max(self.shorter_sides)
        every = "all" if self.looked_at == self.count else f"{self.looked_at:,} of them"
        about = "" if self.looked_at == self.count else "about "
        colour = "grey" if not self.in_colour else f"{percent(self.in_colour / len(self.shorter_sides))} in colour"
        found = [
            f"{self.count:,} images, listed in {self.listing_seconds:.2g} s; looked at {every}",
            f"shorter side {low} to {high} pixels, median {self.side}; {colour}",
            f"unreadable: {about}{self.damaged:,}" + (f" ({self.unreadable[0]})" if self.unreadable else ""),
            f"copies of other files: {self.copies:,}",
        ]
        if self.heldout is not None:
            found.append(f"{self.heldout:,} of them held out, by the names of the folders")
        if self.classes is not None:
            first = ", ".join(f"{printable(name)}: {count:,}" for name, count in list(self.classes.items())[:5])
            found.append(f"{len(self.classes)} folders, maybe classes ({first}{', ...' * (len(self.classes) > 5)})")
        return found


def survey(place: Path) -> Survey:
    """Look at a folder or an archive of images. It takes seconds, and the listing of all names.

    Raises:
        MaskDMError: there are no images, none can be read, or the place may not be read.
    """
    try:
        with tempfile.TemporaryDirectory() as scratch:  # a tar archive is unpacked
            started = perf_counter()
            listing = list_images("image_folder", place, Path(scratch))
            return _survey(listing, perf_counter() - started)
    except OSError as error:
        raise MaskDMError(f"{error.filename or place}: {reason(error)}") from None


def _survey(listing: Listing, listing_seconds: float) -> Survey:
    tree, layout, names = listing
    order = np.random.default_rng(0).permutation(len(names))
    looked = _look(tree, (names[index] for index in order[:LOOK].tolist()))
    if not looked.shorter_sides:
        raise MaskDMError(
            f"{tree.path}: none of {looked.count} images can be read (the first: {looked.unreadable[0]}); "
            "allowed: images that Pillow opens"
        )
    return Survey(
        count=len(names),
        heldout=sum(map(layout.is_heldout, names)) if layout.heldout else None,
        classes=_classes(listing),
        looked_at=looked.count,
        unreadable=looked.unreadable,
        shorter_sides=looked.shorter_sides,
        cropped=looked.cropped,
        in_colour=looked.in_colour,
        seconds_an_image=looked.seconds / looked.count,
        copies=_copies(tree, names),
        listing_seconds=listing_seconds,
    )


@dataclass
class _Looked:
    count: int
    unreadable: list[str]
    shorter_sides: list[int]
    cropped: list[float]
    in_colour: int = 0
    seconds: float = 0.0


def _look(tree: Tree, names: Iterator[str]) -> _Looked:
    found, started = _Looked(0, [], [], []), perf_counter()
    for name in names:
        if found.count >= FEWEST and found.seconds > LOOK_SECONDS:
            break
        found.count += 1
        try:
            content = tree.read(name)
            width, height = sides(content)
            pixels = square_pixels(content, THUMBNAIL, channels=3).astype(int)
        except UnidentifiedImageError:  # its text holds a memory address
            found.unreadable.append(f"{printable(name)}: not an image")
        except Exception as error:  # decoders of damaged files raise nearly anything
            found.unreadable.append(f"{printable(name)}: {reason(error)}")
        else:
            found.shorter_sides.append(min(width, height))
            found.cropped.append(1 - min(width, height) / max(width, height))
            found.in_colour += int((pixels.max(axis=0) - pixels.min(axis=0)).max() > GREY)
        found.seconds = perf_counter() - started
    return found


def _classes(listing: Listing) -> dict[str, int] | None:
    """Images of each folder, from the most on; None: the folders are no classes."""
    try:
        counts = Counter(map(listing.layout.class_of, listing.names))
    except MaskDMError:  # an image in none
        return None
    if not 2 <= len(counts) <= MOST_CLASSES or min(counts.values()) < FEWEST_OF_A_CLASS:
        return None
    return dict(counts.most_common())


def _copies(tree: Tree, names: Sequence[str]) -> int:
    """About how many files have the bytes of another one; exactly, where few have the size of another one."""
    order = np.random.default_rng(0).permutation(len(names)).tolist()
    by_size: dict[int, list[str]] = {}
    for index in order:
        by_size.setdefault(tree.files[names[index]].size, []).append(names[index])
    groups = [group for group in by_size.values() if len(group) > 1]
    hashed, covered, copies, stop = 0, 0, 0.0, perf_counter() + HASH_SECONDS
    for group in groups:
        digests = Counter[bytes | None]()
        for name in group[: HASH - hashed]:
            if perf_counter() > stop:
                break
            digests[_digest(tree, name)] += 1
        if not (read := digests.total()):
            break
        repeated = sum(number - 1 for digest, number in digests.items() if digest is not None)
        # A share of the files has the square of it of the pairs; and what was read of each content is no copy.
        copies += min(repeated * (len(group) / read) ** 2, len(group) - (read - repeated))
        hashed, covered = hashed + read, covered + len(group)
    return round(copies * sum(map(len, groups)) / covered) if covered else 0


def _digest(tree: Tree, name: str) -> bytes | None:
    """Of a file's bytes; None: it cannot be read, and is no copy."""
    try:
        return hashlib.blake2b(tree.read(name), digest_size=16).digest()
    except Exception:  # in a damaged archive nearly any
        return None
