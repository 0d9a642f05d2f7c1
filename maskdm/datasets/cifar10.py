"""CIFAR-10 from its Python archive, which is made of pickles: they are read without running what a pickle may hold.

Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from maskdm.config.params import Data
from maskdm.datasets.raw import RawImages, raw_place, require_shape
from maskdm.datasets.trees import Tree, open_tree
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import file_sha256

TRAIN_FILES = [f"data_batch_{number}" for number in range(1, 6)]
HELDOUT_FILES = ["test_batch"]
CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def load(data: Data, raw: Path, scratch: Path) -> RawImages:
    """Read the 50,000 training and 10,000 held-out images, 32x32 RGB, with labels.

    Raises:
        MaskDMError: the archive or one of its files is missing or damaged.
    """
    require_shape(data, 32, 3)
    place = raw_place(data, raw)
    files = TRAIN_FILES + HELDOUT_FILES

    def wanted(name: str) -> bool:
        return PurePosixPath(name).name in files

    tree = open_tree(place, wanted, scratch)
    if tree is None or not any(map(wanted, tree.files)):
        raise MaskDMError(
            f"{place}: no CIFAR-10; place there: cifar-10-python.tar.gz from {PAGE}, or its folder "
            "cifar-10-batches-py; or set data.root to either"
        )
    paths = {name: _find(tree, name) for name in files}
    batches = [_batch(tree, path) for path in paths.values()]
    images = np.concatenate([batch[0] for batch in batches])
    num_heldout = len(batches[-1][0])
    return RawImages(
        source=f"{'folder' if tree.path.is_dir() else 'archive'} {tree.path}",
        files=(
            {name: file_sha256(tree.path / path) for name, path in paths.items()}
            if tree.path.is_dir()
            else {tree.path.name: file_sha256(tree.path)}
        ),
        count=len(images),
        read=images.__getitem__,
        labels=np.concatenate([batch[1] for batch in batches]),
        class_names=CLASS_NAMES,
        heldout=np.arange(len(images)) >= len(images) - num_heldout,
    )


def _find(tree: Tree, file: str) -> str:
    found = [name for name in tree.files if PurePosixPath(name).name == file]
    if len(found) != 1:
        raise MaskDMError(f"{tree.path}: allowed: one file named {file}, found {len(found)}")
    return found[0]


def _batch(tree: Tree, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One pickle as uint8 [n, 3, 32, 32] and int64 [n]."""
    try:
        content = _ArraysOnly(io.BytesIO(tree.read(name)), encoding="latin1").load()  # latin1: written by Python 2
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        images, labels = np.asarray(batch["data"]), np.asarray(batch["labels"], dtype=np.int64)
        if images.dtype != np.uint8:
            raise ValueError(f"the pixels are {images.dtype}, not uint8")
        images = images.reshape(-1, 3, 32, 32)
        if labels.shape != (len(images),) or not np.isin(labels, range(10)).all():
            raise ValueError(f"{len(images)} images need as many labels from 0 to 9")
    except Exception as error:  # a damaged pickle raises nearly anything
        raise MaskDMError(
            f"{tree.path}: {name} is truncated or no CIFAR-10 batch ({' '.join(str(error).split())})"
        ) from None
    return images, labels


class _ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays and plain containers, and refuses every other name a pickle could call."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode,
        }
        reconstruct = np.empty(0).__reduce__()[0]  # its module is numpy.core before NumPy 2, numpy._core since
        for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
            allowed[core, "_reconstruct"] = reconstruct
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[module, name]


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle that Python 2 can read."""
    return text.encode(encoding)
