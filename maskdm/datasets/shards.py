"""Data sets in files of many images each, all of one kind, in a folder."""

import hashlib
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

from maskdm.datasets.encoded import modified
from maskdm.datasets.layout import HELDOUT, TRAIN, Layout
from maskdm.datasets.left_out import NOT_IMAGES, UNREADABLE, LeftOut
from maskdm.datasets.trees import Entry, open_folder
from maskdm.runtime.errors import MaskDMError


@dataclass(frozen=True)
class Shards:
    """The files, sorted by name."""

    folder: Path
    names: list[str]
    entries: list[Entry]
    heldout: list[bool] | None  # whether the images of each are held out; None: there is no split
    left_out: LeftOut

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the listing `size name`: the files may be many and large."""
        listing = "".join(f"{entry.size} {name}\n" for name, entry in zip(self.names, self.entries, strict=True))
        digest = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
        return {f"sizes and names of {len(self.names)} files": digest}

    def version(self) -> str:
        """Differs where one of the files has changed."""
        return modified(entry.modified for entry in self.entries)


def list_shards(place: Path, suffix: str, what: str) -> Shards:
    """List the files that end in `suffix`: `place` itself, or all below it.

    They have a split like folders (`Layout`), if they lie in such, or their names begin like that: `train-00000.tar`.

    Args:
        place: a file or a folder.
        suffix: in small letters.
        what: what the user has to place there.

    Raises:
        MaskDMError: there are none.
        OSError: the folder may not be read.
    """
    missing = MaskDMError(
        f"{place}: no {suffix} files; place there: {what}; or set data.root to the folder or file that holds them"
    )
    if place.is_dir():
        tree, folder = open_folder(place), place
    elif place.is_file() and place.name.lower().endswith(suffix):
        tree, folder = open_folder(place.parent), place.parent
        name = place.name
        return Shards(folder, [name], [tree.files[name]], None, LeftOut())
    else:
        raise missing
    names = [name for name in tree.files if name.lower().endswith(suffix)]
    for name in tree.files.keys() - set(names):
        tree.left_out.add(NOT_IMAGES, name)
    for name in [name for name in names if not (place / name).is_file()]:
        tree.left_out.add(UNREADABLE, name, "not a regular file")
        names.remove(name)
    if not names:
        raise missing
    layout = Layout.of([_in_folder(name) for name in names])
    if layout.heldout:
        for name in [name for name in names if _in_folder(name) not in layout.heldout]:
            tree.left_out.add("outside of train and test", name)
            names.remove(name)
    names = tree.once(names, first=lambda name: layout.is_heldout(_in_folder(name)))
    heldout = [layout.is_heldout(_in_folder(name)) for name in names] if layout.heldout else None
    return Shards(folder, names, [tree.files[name] for name in names], heldout, tree.left_out)


def _in_folder(name: str) -> str:
    """`a/train-0.tar` as if it lay in a folder of its part: `a/train/train-0.tar`."""
    folder, file = posixpath.split(name)
    part = re.split(r"[-_.]", file)[0]
    return posixpath.join(folder, part, file) if part.lower() in (TRAIN, *HELDOUT) else name
