"""The split into training and held-out images: who is on which side, and in which order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from maskdm.config.params import Data
from maskdm.datasets.left_out import COPIES
from maskdm.datasets.raw import RawImages
from maskdm.runtime.errors import MaskDMError

SPLIT_SEED = 0  # of the one shuffle that decides which images are held out and which a smaller training set keeps


class Images(Protocol):
    """Images that are decoded when they are asked for."""

    def decode(self, indices: Sequence[int]) -> Sequence[int]:
        """Decode images of the data set; their places from now on, one behind the other."""

    def digest(self, place: int) -> bytes | None:
        """Of the pixels of the image at a place: copies have the same. None: the image cannot be read."""


@dataclass
class Side:
    """The training or the held-out images, in order."""

    indices: list[int] = field(default_factory=list)  # in the data set
    places: list[int] = field(default_factory=list)  # of the decoded images

    def add(self, index: int, place: int) -> None:
        """Put one more image at the end."""
        self.indices.append(index)
        self.places.append(place)


def split_sizes(raw_images: RawImages, data: Data) -> tuple[int, int]:
    """How many images there are for training and held out, if all can be read.

    Raises:
        MaskDMError: `data.holdout` or `data.train_images` does not fit the data set.
    """
    holdout = _holdout(raw_images, data)
    available = raw_images.count - holdout
    if data.train_images is not None and data.train_images > available:
        raise MaskDMError(
            f"data.train_images={data.train_images} with data.name={data.name}; allowed: null or at most {available}"
        )
    return data.train_images or available, holdout


def _holdout(raw_images: RawImages, data: Data) -> int:
    if raw_images.heldout is not None:
        own = int(raw_images.heldout.sum())
        if data.holdout is not None:
            raise MaskDMError(
                f"data.holdout={data.holdout} with data.name={data.name}; "
                f"allowed: null (it has {own} held-out images of its own)"
            )
        return own
    if data.holdout is None or data.holdout >= raw_images.count:
        value = "null" if data.holdout is None else data.holdout
        raise MaskDMError(
            f"data.holdout={value} with data.name={data.name}; allowed: 1 to {raw_images.count - 1} "
            f"(it has {raw_images.count} images and no held-out split of its own here)"
        )
    return data.holdout


def split(raw_images: RawImages, data: Data, images: Images) -> tuple[Side, Side]:
    """Return the training and the held-out images, each in the order of one fixed shuffle, unreadable ones left out.

    A smaller training set is the beginning of a larger one, and any prefix is a fair sample of a sorted folder.

    A split that is drawn here has no image on both sides: of images with the same pixels as a held-out one the first
    is held out, and the others are left out. One that was published stays as it is, so that results can be compared.

    No image is decoded that is not needed. If all can be read and none is a copy, the places of the training images
    and then of the held-out ones follow each other.
    """
    train_size, heldout_size = split_sizes(raw_images, data)
    order, published = np.random.default_rng(SPLIT_SEED).permutation(raw_images.count), np.empty(0, np.int64)
    if raw_images.heldout is not None:
        own = raw_images.heldout[order]
        order, published, heldout_size = order[~own], order[own], 0
    wanted = train_size + heldout_size
    train, heldout = Side(), Side()
    digests: set[bytes] = set()  # of held-out images that were drawn: first, to be the same for every `train_images`

    def take(indices: np.ndarray, places: Iterable[int]) -> None:
        for index, place in zip(indices.tolist(), places, strict=True):
            digest = images.digest(place)
            if digest in digests:
                raw_images.left_out.add(COPIES, raw_images.name(index))
            elif digest is not None and len(heldout.indices) < heldout_size:
                digests.add(digest)
                heldout.add(index, place)
            elif digest is not None:
                train.add(index, place)

    first = images.decode(np.concatenate([order[heldout_size:wanted], order[:heldout_size], published]).tolist())
    take(order[:wanted], np.roll(first[:wanted], heldout_size).tolist())
    start = wanted
    while missing := min(wanted - len(train.indices) - len(heldout.indices), len(order) - start):
        more = order[start : start + missing]
        take(more, images.decode(more.tolist()))
        start += missing
    for index, place in zip(published.tolist(), first[wanted:], strict=True):
        if images.digest(place) is not None:
            heldout.add(index, place)
    return train, heldout
