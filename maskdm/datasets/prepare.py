"""The registry of data sets, the split into training and held-out images, and the writing of the prepared folder."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from maskdm.config import Data
from maskdm.datasets import cifar10, digits, fashion_mnist, folders
from maskdm.datasets.left_out import UNREADABLE, in_words
from maskdm.datasets.prepared import IMAGES_FILE, INFO_FILE, LABELS_FILE, LEFT_OUT_FILE
from maskdm.datasets.raw import RawImages, UnreadableImageError
from maskdm.errors import MaskDMError
from maskdm.files import expanded

LOADERS: dict[str, Callable[[Data, Path, Path], RawImages]] = {
    "fashion_mnist": fashion_mnist.load,
    "digits": digits.load,
    "cifar10": cifar10.load,
    **dict.fromkeys(folders.FOLDER_SETS, folders.load),
}
SPLIT_SEED = 0  # of the one shuffle that decides which images are held out and which a smaller training set keeps


def prepare(data: Data, out: Path, raw: Path) -> dict[str, Any]:
    """Write `images.npy`, `labels.npy` (if there are labels) and `dataset.json` to the folder `out`.

    What was left out is counted in `dataset.json`, with the first names; `left_out.json` has all of them.

    The folder is built under another name and moved into place when complete. The same input gives the same bytes.

    Args:
        data: which data set, its size and its split.
        out: the prepared folder; one that exists is replaced.
        raw: the folder that holds `<name>/`, the raw files of data set `<name>`; fetched files are kept there.

    Returns:
        The content of `dataset.json`.

    Raises:
        MaskDMError: raw data is missing or damaged, `data.root` is the project's own folder, the settings do not fit
            the data set, or the disk is full.
    """
    _check_root(data, out)
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    _remove(partial, old)  # left by a run that was killed
    try:
        scratch = partial / "scratch"
        scratch.mkdir(parents=True)
        info = _write(LOADERS[data.name](data, raw, scratch), data, partial)
        shutil.rmtree(scratch)
        if out.exists():
            os.rename(out, old)
        os.rename(partial, out)
    except OSError as error:
        raise MaskDMError(f"{error.filename or out}: {error.strerror or error}") from error
    finally:
        _remove(partial, old)
    return info


def _check_root(data: Data, out: Path) -> None:
    """Refuse a folder that `out` lies in: it is the project's own, and its figures would become the data set."""
    if data.root is not None:
        place = os.path.realpath(expanded(data.root, "data.root"))
        if Path(os.path.realpath(out)).is_relative_to(place):
            raise MaskDMError(
                f"data.root={data.root}: {place} holds the project's own {out}; "
                "allowed: a folder of images alone, or an archive"
            )


def _remove(*folders_to_remove: Path) -> None:
    for folder in folders_to_remove:
        shutil.rmtree(folder, ignore_errors=True)


def _write(raw_images: RawImages, data: Data, folder: Path) -> dict[str, Any]:
    """Decode the images one by one into `folder`; training images come first."""
    holdout = _holdout(raw_images, data)
    total = _num_train(raw_images, data, holdout) + holdout
    shape = [data.channels, data.image_size, data.image_size]
    paths = [folder / IMAGES_FILE]
    left_out = raw_images.left_out
    found = raw_images.count + len(left_out) if raw_images.names is not None else None
    train, heldout = _split(raw_images, data, holdout)
    with paths[0].open("wb") as file, tqdm(total=total, desc="prepare", unit="image") as bar:

        def append(images: Iterable[tuple[int, np.ndarray]]) -> list[int]:
            indices = []
            for index, pixels in images:
                file.write(pixels.tobytes())
                indices.append(index)
                bar.update()
            return indices

        _write_header(file, 0, shape)  # NumPy leaves room in it for any count
        train_indices, heldout_indices = append(train), append(heldout)
        file.seek(0)
        _write_header(file, len(train_indices) + len(heldout_indices), shape)
    _check_counts(raw_images, data, len(train_indices), len(heldout_indices))
    if raw_images.labels is not None:
        paths.append(folder / LABELS_FILE)
        np.save(paths[1], raw_images.labels[train_indices + heldout_indices])
    info = {
        "name": data.name,
        "source": raw_images.source,
        "files": raw_images.files,
        "train": len(train_indices),
        "heldout": len(heldout_indices),
        "shape": shape,
        "num_classes": len(raw_images.class_names) if raw_images.class_names is not None else None,
        "class_names": raw_images.class_names,
        "sha256": _sha256(paths),
        "files_found": found,
        "left_out": left_out.summary(),
    }
    if left_out:
        (folder / LEFT_OUT_FILE).write_text(json.dumps(left_out.names(), indent=1) + "\n", encoding="utf-8")
    (folder / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return info


def _holdout(raw_images: RawImages, data: Data) -> int:
    """How many images are held out; checks `data.holdout`."""
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


def _num_train(raw_images: RawImages, data: Data, holdout: int) -> int:
    """How many training images are asked for; checks `data.train_images`."""
    available = raw_images.count - holdout
    if data.train_images is not None and data.train_images > available:
        raise MaskDMError(
            f"data.train_images={data.train_images} with data.name={data.name}; allowed: null or at most {available}"
        )
    return data.train_images or available


def _split(
    raw_images: RawImages, data: Data, holdout: int
) -> tuple[Iterator[tuple[int, np.ndarray]], Iterator[tuple[int, np.ndarray]]]:
    """Return the training and the held-out images, each in the order of one fixed shuffle, unreadable ones left out.

    A smaller training set is the beginning of a larger one, and any prefix is a fair sample of a sorted folder.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(raw_images.count).tolist()
    if raw_images.heldout is not None:
        train = _readable(raw_images, (index for index in order if not raw_images.heldout[index]))
        heldout = [index for index in order if raw_images.heldout[index]]
    else:
        # Held-out images are drawn first, so that they are the same for every `train_images`. They are decoded here
        # to know which are readable, and again when they are written: they are few and come last on disk.
        train = _readable(raw_images, iter(order))
        checked = tqdm(islice(train, holdout), total=holdout, desc="check held-out images", unit="image")
        heldout = [index for index, _ in checked]
    return islice(train, data.train_images), _readable(raw_images, iter(heldout))


def _readable(raw_images: RawImages, indices: Iterator[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Index and pixels of the images that can be decoded; the others are left out."""
    for index in indices:
        try:
            pixels = raw_images.read(index)
        except UnreadableImageError as error:
            raw_images.left_out.add(UNREADABLE, error.name, error.reason)
        else:
            yield index, pixels


def _check_counts(raw_images: RawImages, data: Data, train: int, heldout: int) -> None:
    wanted_heldout = data.holdout or 1
    if train < (data.train_images or 1) or heldout < wanted_heldout:
        raise MaskDMError(
            f"{raw_images.source}: too few images to read: {train} for training and {heldout} held out; "
            f"left out: {in_words(raw_images.left_out.summary()) or 'nothing'}"
        )


def _write_header(file: BinaryIO, count: int, shape: list[int]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _sha256(paths: list[Path]) -> str:
    """SHA-256 of the files' bytes, one after the other: the data hash."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
