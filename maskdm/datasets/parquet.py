"""Parquet files with a column of images, as Hugging Face keeps data sets. Rows are read a few at a time.

https://huggingface.co/docs/datasets/image_dataset
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow.parquet import ParquetFile

from maskdm.config.params import Data
from maskdm.datasets.encoded import classes, encoded_images
from maskdm.datasets.raw import RawImages, raw_place
from maskdm.datasets.shards import Shards, list_shards
from maskdm.datasets.trees import require_size
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reason

BATCH = 4  # rows that are read at a time: images may be large
USUAL = ("image", "img")  # the column of images, where there are several


def load(data: Data, raw: Path, scratch: Path) -> RawImages:
    """List the rows of all files below `data.root` or `raw/parquet`; `data.labels` is the column of the labels.

    Raises:
        MaskDMError: there are no rows, a file is damaged, or it has no column of images or of labels.
    """
    place = raw_place(data, raw)
    shards = list_shards(place, ".parquet", "Parquet files with a column of images")
    rows, column, labels = _Rows(shards), "", list[Any]()
    class_names = None
    for name in shards.names:
        path = shards.folder / name
        try:
            with _opened(path) as file:
                rows.add(file)
                column = column or _image_column(file.schema_arrow)
                if column.split(".")[0] not in file.schema_arrow.names:
                    raise MaskDMError(f"no column {column.split('.')[0]}, which other files have")
                if data.labels is not None:
                    labels += _labels(file, data.labels)
                    class_names = class_names or _class_names(file.schema_arrow, data.labels)
        except MaskDMError as error:
            raise MaskDMError(f"{path}: {error}") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise MaskDMError(f"{path}: truncated, damaged, or no Parquet file ({reason(error)})") from None
    if not len(rows):
        raise MaskDMError(f"{place}: no rows in {len(shards.names)} files")
    numbers = None
    if data.labels is not None:
        numbers, class_names = _numbered(labels, class_names, data.labels)
    return encoded_images(
        data,
        file=lambda index: partial(_read, *rows.place(index), column),
        names=rows,
        source=f"{len(shards.names)} Parquet files, {place}",
        files=shards.checksums(),
        version=shards.version(),
        labels=numbers,
        class_names=class_names,
        heldout=None if shards.heldout is None else np.repeat(shards.heldout, rows.of_files()),
        left_out=shards.left_out,
    )


class _Rows(Sequence[str]):
    """All rows, as names: which file, group of rows and row in it is the one of a number?"""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.groups: list[tuple[int, int]] = []  # of each group: file, number in it
        self.starts = [0]  # the first row of each group, and the end
        self.files = 0

    def add(self, file: ParquetFile) -> None:
        """Put the rows of the next file at the end."""
        for group in range(file.metadata.num_row_groups):
            self.groups.append((self.files, group))
            self.starts.append(self.starts[-1] + file.metadata.row_group(group).num_rows)
        self.files += 1

    def of_files(self) -> list[int]:
        """How many rows each file has."""
        return (
            np.bincount([file for file, _ in self.groups], weights=np.diff(self.starts), minlength=self.files)
            .astype(int)
            .tolist()
        )

    def place(self, index: int) -> tuple[Path, int, int]:
        """File, group, and row in it."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        file, group = self.groups[number]
        return self.shards.folder / self.shards.names[file], group, index - self.starts[number]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        path, group, row = self.place(index)
        return f"{path.relative_to(self.shards.folder)}: row {row} of group {group}"


def _opened(path: Path) -> ParquetFile:
    return ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)  # else it reads a whole group of rows at once


def _image_column(schema: pa.Schema) -> str:
    """The path of the column that holds the bytes of image files."""
    found = {field.name: path for field in schema if (path := _bytes_in(field))}
    usual = [name for name in USUAL if name in found]
    if len(found) != 1 and not usual:
        names = ", ".join(found) or ", ".join(schema.names)
        what = "several columns of bytes" if found else "no column of bytes"
        raise MaskDMError(f"{what} ({names}); allowed: one with the bytes of image files, or one named image")
    return found[usual[0]] if usual else next(iter(found.values()))


def _bytes_in(field: pa.Field) -> str | None:
    """The path of the bytes: of the column itself, or of `bytes` in it, as Hugging Face writes it."""
    if _is_bytes(field.type):
        return field.name
    inside = [part for part in field.type if part.name == "bytes"] if pa.types.is_struct(field.type) else []
    return f"{field.name}.bytes" if inside and _is_bytes(inside[0].type) else None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


# --- labels -------------------------------------------------------------------------------------------------


def _labels(file: ParquetFile, column: str) -> list[Any]:
    if column not in file.schema_arrow.names:
        raise MaskDMError(f"data.labels={column}; allowed: a column, of {', '.join(file.schema_arrow.names)}")
    kind = file.schema_arrow.field(column).type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise MaskDMError(f"data.labels={column}; allowed: a column of whole numbers or texts, this is of {kind}")
    return [value for batch in file.iter_batches(columns=[column]) for value in batch.column(0).to_pylist()]


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names that Hugging Face's description of a column gives its numbers; None: it gives none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _numbered(values: list[Any], names: list[str] | None, column: str) -> tuple[np.ndarray, list[str]]:
    try:
        labels, found = classes(values)
    except MaskDMError as error:
        raise MaskDMError(f"data.labels={column}: {error}") from None
    if names is None:
        return labels, found
    wrong = [value for value in set(values) if not isinstance(value, int) or not 0 <= value < len(names)]
    if wrong:
        raise MaskDMError(f"data.labels={column}: {wrong[0]!r}; allowed: 0 to {len(names) - 1}, the named classes")
    return np.array(values, np.int64), names


# --- rows ---------------------------------------------------------------------------------------------------


class _Cursor:
    """Reads a group of rows from its start on: the rows that a process is asked for come one after the other."""

    def __init__(self, path: Path, group: int, column: str) -> None:
        self.at = (path, group, column)
        self.batches: Iterator[pa.RecordBatch] = _opened(path).iter_batches(
            BATCH, row_groups=[group], columns=[column], use_threads=False
        )
        self.values: Any = []  # of the batch that begins with row `start`
        self.start = 0

    def read(self, row: int) -> bytes:
        while row >= self.start + len(self.values):
            self.start += len(self.values)
            values = next(self.batches).column(0)
            self.values = values.field("bytes") if pa.types.is_struct(values.type) else values
        value = self.values[row - self.start]
        if not value.is_valid:
            raise ValueError("no bytes: the image is not in the file")
        require_size(len(value.as_buffer()))
        return value.as_py()


_cursor: _Cursor | None = None  # of this process


def _read(path: Path, group: int, row: int, column: str) -> bytes:
    global _cursor
    if _cursor is None or _cursor.at != (path, group, column) or row < _cursor.start:
        _cursor = _Cursor(path, group, column)
    try:
        return _cursor.read(row)
    except BaseException:
        _cursor = None  # it may have lost its place
        raise
