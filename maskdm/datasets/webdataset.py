"""WebDataset: tar archives in which files that share their name up to the first dot are a sample. Nothing is unpacked.

https://github.com/webdataset/webdataset
"""

import errno
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tarfile import TarFile, TarInfo

import numpy as np

from maskdm.config.params import Data
from maskdm.datasets.encoded import classes, encoded_images
from maskdm.datasets.images import is_image
from maskdm.datasets.left_out import HIDDEN, NOT_IMAGES, SECOND_NAMES, UNREADABLE, LeftOut
from maskdm.datasets.raw import RawImages, raw_place
from maskdm.datasets.shards import list_shards
from maskdm.datasets.trees import Member, check_end, is_hidden, require_size, tar_members
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reason

LONGEST_LABEL = 1000  # bytes


@dataclass
class _Sample:
    image: str | None = None  # its name in the archive
    start: int = 0  # of its bytes
    size: int = 0
    label: int | str | None = None


def load(data: Data, raw: Path, scratch: Path) -> RawImages:
    """List the images of all archives below `data.root` or `raw/webdataset`; `data.labels` is the suffix of the labels.

    Raises:
        MaskDMError: there are no images, an archive is damaged, or a sample has several images or no label.
    """
    place = raw_place(data, raw)
    shards = list_shards(place, ".tar", "WebDataset's archives")
    names, labels, of_shard, starts, sizes = list[str](), list[int | str](), list[int](), list[int](), list[int]()
    for number, shard in enumerate(shards.names):
        for key, sample in _samples(shards.folder / shard, data.labels, shards.left_out).items():
            if sample.image is None:
                shards.left_out.add(NOT_IMAGES, f"{shard}/{key}")
                continue
            if data.labels is not None:
                if sample.label is None:
                    raise MaskDMError(
                        f"{shards.folder / shard}: {key}.{data.labels} is missing (data.labels={data.labels})"
                    )
                labels.append(sample.label)
            names.append(f"{shard}/{sample.image}")
            of_shard.append(number)
            starts.append(sample.start)
            sizes.append(sample.size)
    if not names:
        raise MaskDMError(f"{place}: no images in {len(shards.names)} archives")
    numbers, class_names = classes(labels) if data.labels is not None else (None, None)
    return encoded_images(
        data,
        file=lambda index: partial(_read, shards.folder / shards.names[of_shard[index]], starts[index], sizes[index]),
        names=names,
        source=f"{len(shards.names)} WebDataset archives, {place}",
        files=shards.checksums(),
        version=shards.version(),
        labels=numbers,
        class_names=class_names,
        heldout=None if shards.heldout is None else np.array(shards.heldout)[of_shard],
        left_out=shards.left_out,
    )


def _samples(path: Path, labels: str | None, left_out: LeftOut) -> dict[str, _Sample]:
    """The samples of an archive by their key, in the order of the archive."""
    samples: dict[str, _Sample] = {}
    end = path.stat().st_size
    try:
        with tarfile.open(path, "r:", tarinfo=Member) as archive:
            for member in tar_members(archive):
                if not member.isdir() and not (member.isfile() and not member.issparse()):
                    left_out.add(UNREADABLE, f"{path.name}/{member.name}", "not a regular file")
                elif member.isfile():
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError("unexpected end of data")
                    _add(samples, archive, member, labels, left_out)
            check_end(archive)
    except MaskDMError as error:
        raise MaskDMError(f"{path}: {error}") from None
    except Exception as error:  # damaged archives raise nearly anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise MaskDMError(f"{path}: truncated, damaged, or no tar archive ({reason(error)})") from None
    return samples


def _add(samples: dict[str, _Sample], archive: TarFile, member: TarInfo, labels: str | None, left_out: LeftOut) -> None:
    """Put a file to its sample."""
    folder, slash, file = member.name.rpartition("/")
    stem, _, suffix = file.partition(".")
    if is_hidden(member.name):
        left_out.add(HIDDEN, f"{Path(str(archive.name)).name}/{member.name}")
        return
    sample = samples.setdefault(f"{folder}{slash}{stem}", _Sample())
    if suffix == labels:
        sample.label = _label(archive, member)
    elif is_image(file):
        if sample.image == member.name:  # the archive was appended to: the last one counts, as where it is unpacked
            left_out.add(SECOND_NAMES, f"{Path(str(archive.name)).name}/{member.name}")
        elif sample.image is not None:
            raise MaskDMError(
                f"{sample.image} and {member.name} are images of one sample, as their names are the same up to the "
                "first dot; allowed: one (or unpack the archives, with data.name: image_folder)"
            )
        sample.image, sample.start, sample.size = member.name, member.offset_data, member.size


def _label(archive: TarFile, member: TarInfo) -> int | str:
    """A whole number, or a text."""
    if member.size > LONGEST_LABEL:
        raise MaskDMError(f"{member.name}: {member.size} bytes are no label; allowed: {LONGEST_LABEL}")
    content = archive.extractfile(member)
    assert content is not None  # a regular file has content
    try:
        text = content.read().decode().strip()
    except UnicodeDecodeError:
        raise MaskDMError(f"{member.name}: allowed: a whole number or a text, it is neither") from None
    try:
        return int(text)
    except ValueError:
        return text


def _read(path: Path, start: int, size: int) -> bytes:
    require_size(size)
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(size)
    if len(content) < size:
        raise OSError(errno.EIO, "the archive has become shorter")
    return content
