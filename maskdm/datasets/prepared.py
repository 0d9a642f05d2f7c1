"""The prepared array on disk as training reads it, and the order in which its images are drawn."""

import json
import mmap
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.runtime.errors import MaskDMError

IMAGES_FILE = "images.npy"
LABELS_FILE = "labels.npy"
INFO_FILE = "dataset.json"
INFO_KEYS = (
    "name", "source", "files", "train", "heldout", "shape", "num_classes", "class_names", "sha256", "skipped",
)  # fmt: skip
_ORDER_KEY = 1  # keeps this generator apart from others made from the same seed


@dataclass(frozen=True)
class PreparedData:
    """Training images first, then held-out ones, each part in a fixed random order: any prefix is a fair sample."""

    images: np.ndarray  # uint8 [train + heldout, C, H, W], memory-mapped
    labels: np.ndarray | None  # int64 [train + heldout]
    info: dict[str, Any]  # what dataset.json says

    @classmethod
    def open(cls, folder: Path) -> "PreparedData":
        """Map the array of a prepared folder and check it against its `dataset.json`; the content is not hashed again.

        Raises:
            MaskDMError: a file is missing, damaged, or does not fit the others.
        """
        info = _read_info(folder / INFO_FILE)
        count = info["train"] + info["heldout"]
        images = _map(folder / IMAGES_FILE, np.uint8, (count, *info["shape"]))
        labels = _map(folder / LABELS_FILE, np.int64, (count,)) if info["num_classes"] is not None else None
        return cls(images, labels, info)

    @property
    def train(self) -> np.ndarray:
        """uint8 [train, C, H, W]."""
        return self.images[: self.info["train"]]

    @property
    def heldout(self) -> np.ndarray:
        """uint8 [heldout, C, H, W]."""
        return self.images[self.info["train"] :]

    @property
    def train_labels(self) -> np.ndarray | None:
        """int64 [train], None where the data set has no labels."""
        return None if self.labels is None else self.labels[: self.info["train"]]

    @property
    def heldout_labels(self) -> np.ndarray | None:
        """int64 [heldout], None where the data set has no labels."""
        return None if self.labels is None else self.labels[self.info["train"] :]


def read(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """A copy of the images at `indices`.

    Of a file that is mapped they are all asked for before the first one is waited for. So the disk reads them side by
    side, and nothing beside them: a data set larger than memory comes many times as fast.
    """
    file = images.base
    while isinstance(file, np.ndarray):
        file = file.base
    if isinstance(file, mmap.mmap) and hasattr(file, "madvise"):
        start = images.ctypes.data - np.frombuffer(file, np.uint8).ctypes.data
        for index in indices.tolist():
            first = start + index * images.strides[0]
            page = first - first % mmap.PAGESIZE
            file.madvise(mmap.MADV_WILLNEED, page, first + images.strides[0] - page)
    return images[indices]


def sample_order(seed: int, num_images: int, start: int, count: int) -> np.ndarray:
    """Which images stand at the positions `start` to `start + count - 1` of an endless sequence of epochs.

    Every epoch is a permutation of its own, drawn from `(seed, epoch)`, so that each image comes exactly once
    an epoch. It is a pure function of position: neither the batch size nor a resumed run changes the sequence.

    Returns:
        int64 [count], indices from 0 to `num_images - 1`.
    """
    parts, end = [np.empty(0, np.int64)], start + count
    while start < end:
        epoch, place = divmod(start, num_images)
        parts.append(_epoch_order(seed, num_images, epoch)[place : place + end - start])  # of millions
        start += len(parts[-1])
    return np.concatenate(parts)


@lru_cache(maxsize=2)  # a batch lies in one epoch or in two
def _epoch_order(seed: int, num_images: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([_ORDER_KEY, seed, epoch]).permutation(num_images)
    order.flags.writeable = False  # the cache hands out the same array again
    return order


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MaskDMError(f"{path}: no such file; the stage `prepare` writes it") from None
    except ValueError as error:
        raise MaskDMError(f"{path}: not valid JSON ({error}); run `dvc repro -f prepare`") from None
    if not isinstance(info, dict):
        raise MaskDMError(f"{path}: allowed: a JSON object; run the stage `prepare` again")
    for key in INFO_KEYS:
        if key not in info:
            raise MaskDMError(f"{path}: {key} is missing; run the stage `prepare` again")
    return info


def _map(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise MaskDMError(f"{path}: no such file; the stage `prepare` writes it") from None
    except (OSError, ValueError, EOFError) as error:
        raise MaskDMError(
            f"{path}: truncated or damaged ({' '.join(str(error).split())}); run `dvc repro -f prepare`"
        ) from None
    if array.dtype != dtype or array.shape != shape:
        raise MaskDMError(
            f"{path}: {array.dtype} {list(array.shape)}, but {INFO_FILE} says {np.dtype(dtype)} {list(shape)}; "
            "run the stage `prepare` again"
        )
    return array
