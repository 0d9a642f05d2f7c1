"""Data sets of encoded images: a loader says where the bytes of each are, and they are decoded here, by any process."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import UnidentifiedImageError

from maskdm.config.params import Data
from maskdm.datasets.images import square_pixels
from maskdm.datasets.raw import RawImages, UnreadableImageError
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reason

Read = Callable[[], bytes]


def encoded_images(data: Data, file: Callable[[int], Read], names: Sequence[str], **others: Any) -> RawImages:
    """A data set of image files.

    Args:
        data: how large the images become.
        file: index -> a call that reads the file. Other processes make it: it can be pickled, and should be small.
        names: of all images.
        others: of `RawImages`.
    """

    def call(index: int) -> Callable[[], np.ndarray]:
        return partial(decode, file(index), names[index], data.image_size, data.channels)

    return RawImages(count=len(names), read=lambda index: call(index)(), call=call, names=names, **others)


def decode(read: Read, name: str, image_size: int, channels: int) -> np.ndarray:
    """An image as training sees it (`square_pixels`).

    Raises:
        UnreadableImageError: it cannot be read or decoded, or has more pixels than Pillow allows.
        MemoryError: there is too little memory for the file.
    """
    try:
        content = read()
    except MemoryError:
        raise
    except Exception as error:  # of damaged archives nearly any
        raise UnreadableImageError(name, reason(error)) from None
    try:
        return square_pixels(content, image_size, channels)
    except UnidentifiedImageError:  # its text holds a memory address
        raise UnreadableImageError(name, "not an image") from None
    except Exception as error:  # decoders of damaged files raise nearly anything; the file is named, not dropped
        raise UnreadableImageError(name, reason(error)) from None


def classes(values: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    """The class of each image as a number, int64 [n], and the names of the classes: numbers in their order, or texts.

    Raises:
        MaskDMError: a value is neither, or some are numbers and some are texts.
    """
    kinds = {type(value) for value in values}
    if kinds not in ({int}, {str}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise MaskDMError(f"classes of the types {found}; allowed: whole numbers, or texts, for every image")
    names = sorted(set(values))
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[value] for value in values], np.int64), list(map(str, names))


def modified(times: Iterable[int]) -> str:
    """A version of files, from when each was changed."""
    return hashlib.sha256(np.fromiter(times, np.int64).tobytes()).hexdigest()
