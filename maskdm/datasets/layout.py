"""What the folders of one's own images say: which images are held out, and the class of each."""

import posixpath
from dataclasses import dataclass, field
from typing import Self

from maskdm.runtime.errors import MaskDMError

TRAIN = "train"
HELDOUT = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class Layout:
    """How the folders are arranged, below the one that holds all images: archives often wrap everything in a folder."""

    depth: int = 0  # of that folder
    heldout: dict[str, bool] = field(default_factory=dict)  # an image of the split -> is it held out; empty: no split

    @classmethod
    def of(cls, names: list[str]) -> Self:
        """Look at the names of all images.

        They have a split if there is `train/` and one of `test/`, `val/`, `valid/` and `validation/`, in small letters
        or capitals. Where there are several of these all are held out, since nothing is tuned on one of them.
        """
        common = posixpath.commonpath({posixpath.dirname(name) for name in names})
        depth = len(_parts(common))
        tops = {name: folders[0].lower() for name in names if (folders := _parts(posixpath.dirname(name))[depth:])}
        if TRAIN not in tops.values() or not set(HELDOUT) & set(tops.values()):
            return cls(depth)
        return cls(depth, {name: top in HELDOUT for name, top in tops.items() if top in (TRAIN, *HELDOUT)})

    def is_heldout(self, name: str) -> bool:
        """Tell whether the split holds an image out; without a split, none."""
        return self.heldout.get(name, False)

    def class_of(self, name: str) -> str:
        """Name the class of an image: the outermost folder around it, within `train/` and the like if there is a split.

        Raises:
            MaskDMError: there is no such folder.
        """
        folders = _parts(posixpath.dirname(name))[self.depth + bool(self.heldout) :]
        if not folders:
            raise MaskDMError(f"{name}: with data.labels=folders; allowed: images in two or more folders, each a class")
        return folders[0]


def _parts(folder: str) -> list[str]:
    return folder.split("/") if folder else []
