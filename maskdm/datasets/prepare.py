"""The registry of data sets, and the writing of the prepared folder."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from maskdm.config.params import Data
from maskdm.datasets import cifar10, digits, fashion_mnist, folders
from maskdm.datasets.classes import of_classes
from maskdm.datasets.duplicates import count_duplicates
from maskdm.datasets.left_out import COPIES, FILE, UNREADABLE, in_words
from maskdm.datasets.prepared import IMAGES_FILE, INFO_FILE, LABELS_FILE
from maskdm.datasets.raw import RawImages
from maskdm.datasets.split import Image, split, split_sizes
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import expanded

LOADERS: dict[str, Callable[[Data, Path, Path], RawImages]] = {
    "fashion_mnist": fashion_mnist.load,
    "digits": digits.load,
    "cifar10": cifar10.load,
    **dict.fromkeys(folders.FOLDER_SETS, folders.load),
}


def prepare(data: Data, out: Path, raw: Path) -> dict[str, Any]:
    """Write `images.npy`, `labels.npy` (if there are labels) and `dataset.json` to the folder `out`.

    `dataset.json` counts what was left out, with the first names, and images with the same pixels (`split`,
    `count_duplicates`). `left_out.json` has all names of what was left out; there is none if that is nothing.

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
        info = _write(_load(data, raw, scratch), data, partial)
        shutil.rmtree(scratch)
        if out.exists():
            os.rename(out, old)
        os.rename(partial, out)
    except OSError as error:
        raise MaskDMError(f"{error.filename or out}: {error.strerror or error}") from error
    finally:
        if old.exists() and not out.exists():  # stopped between the two: the old one is still the data
            os.rename(old, out)
        _remove(partial, old)
    return info


def _load(data: Data, raw: Path, scratch: Path) -> RawImages:
    found = LOADERS[data.name](data, raw, scratch)
    return found if data.classes is None else of_classes(found, data.classes)


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
    left_out = raw_images.left_out
    found = raw_images.count + len(left_out) if raw_images.names is not None else None
    total = sum(split_sizes(raw_images, data))
    shape = [data.channels, data.image_size, data.image_size]
    paths = [folder / IMAGES_FILE]
    train_images, heldout_images = split(raw_images, data)
    with paths[0].open("wb") as file, tqdm(total=total, desc="prepare", unit="image") as bar:

        def append(images: Iterable[Image]) -> tuple[list[int], bytes]:
            indices, digests = [], bytearray()
            for image in images:
                file.write(image.pixels.tobytes())
                indices.append(image.raw_index)
                digests += image.digest
                bar.update()
            return indices, bytes(digests)

        _write_header(file, 0, shape)  # NumPy leaves room in it for any count
        train, train_digests = append(train_images)
        heldout, heldout_digests = append(heldout_images)
        file.seek(0)
        _write_header(file, len(train) + len(heldout), shape)
    _check_counts(raw_images, data, len(train), len(heldout))
    if raw_images.labels is not None:
        paths.append(folder / LABELS_FILE)
        np.save(paths[1], raw_images.labels[train + heldout])
    info = {
        "name": data.name,
        "source": raw_images.source,
        "files": raw_images.files,
        "train": len(train),
        "heldout": len(heldout),
        "shape": shape,
        "num_classes": len(raw_images.class_names) if raw_images.class_names is not None else None,
        "class_names": raw_images.class_names,
        "sha256": _sha256(paths),
        "skipped": left_out.names().get(UNREADABLE, []),
        "duplicates": count_duplicates(train_digests, heldout_digests) | {"left_out": left_out.count(COPIES)},
        "files_found": found,
        "left_out": left_out.summary(),
    }
    if left_out:
        (folder / FILE).write_text(json.dumps(left_out.names(), indent=1) + "\n", encoding="utf-8")
    (folder / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return info


def _check_counts(raw_images: RawImages, data: Data, train: int, heldout: int) -> None:
    wanted_heldout = data.holdout or 1
    if train < (data.train_images or 1) or heldout < wanted_heldout:
        raise MaskDMError(
            f"{raw_images.source}: too few images: {train} for training and {heldout} held out; "
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
