"""The split into training and held-out images: who is on which side, and in which order."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from maskdm.config.params import Data
from maskdm.datasets.duplicates import pixel_digest
from maskdm.datasets.left_out import COPIES, UNREADABLE
from maskdm.datasets.raw import RawImages, UnreadableImageError
from maskdm.runtime.errors import MaskDMError

SPLIT_SEED = 0  # of the one shuffle that decides which images are held out and which a smaller training set keeps


class Image(NamedTuple):
    """An image that could be read."""

    raw_index: int
    pixels: np.ndarray  # uint8 [C, H, W]
    digest: bytes  # of the pixels: images with the same one are copies


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


def split(raw_images: RawImages, data: Data) -> tuple[Iterator[Image], Iterator[Image]]:
    """Return the training and the held-out images, each in the order of one fixed shuffle, unreadable ones left out.

    A smaller training set is the beginning of a larger one, and any prefix is a fair sample of a sorted folder.

    A split that is drawn here has no image on both sides: of images with the same pixels as a held-out one the first
    is held out, and the others are left out. One that was published stays as it is, so that results can be compared.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(raw_images.count).tolist()
    if raw_images.heldout is not None:
        train = _readable(raw_images, (index for index in order if not raw_images.heldout[index]))
        heldout = [index for index in order if raw_images.heldout[index]]
    else:
        # Held-out images are drawn first, so that they are the same for every `train_images`. They are decoded here
        # to know which are readable, and again when they are written: they are few and come last on disk.
        digests: set[bytes] = set()
        train = _without_copies(raw_images, _readable(raw_images, order), digests)
        heldout = []
        for image in tqdm(islice(train, data.holdout), total=data.holdout, desc="check held-out images", unit="image"):
            digests.add(image.digest)
            heldout.append(image.raw_index)
    return islice(train, data.train_images), _readable(raw_images, heldout)


def _readable(raw_images: RawImages, indices: Iterable[int]) -> Iterator[Image]:
    for index in indices:
        try:
            pixels = raw_images.read(index)
        except UnreadableImageError as error:
            raw_images.left_out.add(UNREADABLE, error.name, error.reason)
        else:
            yield Image(index, pixels, pixel_digest(pixels))


def _without_copies(raw_images: RawImages, images: Iterator[Image], heldout: set[bytes]) -> Iterator[Image]:
    """Leave out what is among the held-out images' digests when its turn comes."""
    for image in images:
        if image.digest in heldout:
            raw_images.left_out.add(COPIES, raw_images.name(image.raw_index))
        else:
            yield image
