"""The registry of data sets, and the writing of the prepared folder."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from maskdm.config.params import Data
from maskdm.datasets import cifar10, digits, fashion_mnist, folders, images, lmdbs, parquet, webdataset
from maskdm.datasets.classes import of_classes
from maskdm.datasets.decoded import DecodedImages
from maskdm.datasets.duplicates import count_duplicates
from maskdm.datasets.left_out import COPIES, FILE, UNREADABLE, in_words
from maskdm.datasets.prepared import IMAGES_FILE, INFO_FILE, LABELS_FILE
from maskdm.datasets.raw import RawImages
from maskdm.datasets.split import split
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import expanded, file_sha256
from maskdm.runtime.locks import locked

GO_ON = "the same command goes on from here"

LOADERS: dict[str, Callable[[Data, Path, Path], RawImages]] = {
    "fashion_mnist": fashion_mnist.load,
    "digits": digits.load,
    "cifar10": cifar10.load,
    **dict.fromkeys(folders.FOLDER_SETS, folders.load),
    "lsun_church": lmdbs.load_lsun,
    "lmdb": lmdbs.load,
    "webdataset": webdataset.load,
    "parquet": parquet.load,
}


def prepare(data: Data, out: Path, raw: Path) -> dict[str, Any]:
    """Write `images.npy`, `labels.npy` (if there are labels) and `dataset.json` to the folder `out`.

    `dataset.json` counts what was left out, with the first names, and images with the same pixels (`split`,
    `count_duplicates`). `left_out.json` has all names of what was left out; there is none if that is nothing.

    The folder is built under another name and moved into place when complete. The same input gives the same bytes.
    After a kill or Ctrl-C the next call goes on.

    Args:
        data: which data set, its size and its split.
        out: the prepared folder; one that exists is replaced.
        raw: the folder that holds `<name>/`, the raw files of data set `<name>`; fetched files are kept there.

    Returns:
        The content of `dataset.json`.

    Raises:
        MaskDMError: raw data is missing or damaged, `data.root` is the project's own folder, the settings do not fit
            the data set, the disk is full, or another process prepares.
    """
    _check_root(data, out)
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with locked(partial / "lock", partial):
            return _prepare(data, out, raw, partial, old)
    except OSError as error:
        kept = f"; what is decoded stays in {partial}: {GO_ON}" if (partial / "decoded").exists() else ""
        raise MaskDMError(f"{error.filename or out}: {error.strerror or error}{kept}") from error
    finally:
        if not (partial / "decoded").exists():
            _remove(partial)


def _prepare(data: Data, out: Path, raw: Path, partial: Path, old: Path) -> dict[str, Any]:
    scratch, new = partial / "scratch", partial / "new"
    _restore(out, old)
    _remove(old, new)  # left by a kill
    try:
        for folder in (scratch, new):
            folder.mkdir(exist_ok=True)
        info = _write(_load(data, raw, scratch), data, partial / "decoded", new)
        if out.exists():
            os.rename(out, old)
        os.rename(new, out)
    except BrokenProcessPool:
        raise MaskDMError(
            f"{partial}: a process that decodes images was killed (out of memory? a crash of Pillow?); {GO_ON}"
        ) from None
    except MemoryError:
        raise MaskDMError(f"{partial}: out of memory; {GO_ON}") from None
    except MaskDMError:  # the same command would come to the same
        _remove(partial)
        raise
    finally:
        _restore(out, old)
    _remove(partial, old)
    return info


def _restore(out: Path, old: Path) -> None:
    """Whoever was stopped between the two renames still has the old data."""
    if old.exists() and not out.exists():
        os.rename(old, out)


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


def _write(raw_images: RawImages, data: Data, decoded: Path, folder: Path) -> dict[str, Any]:
    """Decode the images into `decoded`, where a run that was killed may have begun, and fill `folder`."""
    left_out = raw_images.left_out
    found = raw_images.count + len(left_out) if raw_images.names is not None else None
    shape = [data.channels, data.image_size, data.image_size]
    _keep_only(decoded, _task(raw_images, data))
    pixels = DecodedImages(raw_images, decoded, shape, len(_header(0, shape)))
    train, heldout = split(raw_images, data, pixels)
    _check_counts(raw_images, data, len(train.indices), len(heldout.indices))
    paths = [pixels.collect(train.places + heldout.places)]
    with paths[0].open("r+b") as file:
        file.write(_header(len(train.places) + len(heldout.places), shape))
    if raw_images.labels is not None:
        paths.append(folder / LABELS_FILE)
        np.save(paths[1], raw_images.labels[train.indices + heldout.indices])
    duplicates = count_duplicates(pixels.digests(train.places), pixels.digests(heldout.places))
    info = {
        "name": data.name,
        "source": raw_images.source,
        "files": raw_images.files,
        "train": len(train.indices),
        "heldout": len(heldout.indices),
        "shape": shape,
        "num_classes": len(raw_images.class_names) if raw_images.class_names is not None else None,
        "class_names": raw_images.class_names,
        "sha256": _sha256(paths),
        "skipped": left_out.names().get(UNREADABLE, []),
        "duplicates": duplicates | {"left_out": left_out.count(COPIES)},
        "files_found": found,
        "left_out": left_out.summary(),
    }
    if left_out:
        (folder / FILE).write_text(json.dumps(left_out.names(), indent=1) + "\n", encoding="utf-8")
    (folder / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    os.rename(paths[0], folder / IMAGES_FILE)
    return info


def _task(raw_images: RawImages, data: Data) -> str:
    """Differs where images that another run has decoded may be others, or in other places."""
    heldout = b"" if raw_images.heldout is None else raw_images.heldout.tobytes()
    parts = [
        *(data.model_dump_json(), raw_images.files, raw_images.version, raw_images.count),
        *(hashlib.sha256(heldout).hexdigest(), PIL.__version__, file_sha256(Path(images.__file__))),
    ]
    return json.dumps(parts)


def _keep_only(decoded: Path, task: str) -> None:
    """Remove what another run has decoded, unless it had the same task."""
    note = decoded / "task.json"
    if not note.is_file() or note.read_text(encoding="utf-8") != task:
        _remove(decoded)
        decoded.mkdir()
        note.write_text(task, encoding="utf-8")


def _check_counts(raw_images: RawImages, data: Data, train: int, heldout: int) -> None:
    wanted_heldout = data.holdout or 1
    if train < (data.train_images or 1) or heldout < wanted_heldout:
        raise MaskDMError(
            f"{raw_images.source}: too few images: {train} for training and {heldout} held out; "
            f"left out: {in_words(raw_images.left_out.summary()) or 'nothing'}"
        )


def _header(count: int, shape: list[int]) -> bytes:
    """Of the array's file; NumPy leaves room in it for any count."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})
    return file.getvalue()


def _sha256(paths: list[Path]) -> str:
    """SHA-256 of the files' bytes, one after the other: the data hash."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
