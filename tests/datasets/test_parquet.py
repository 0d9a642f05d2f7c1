"""Parquet as Hugging Face writes it: image columns, named classes, splits; and what is refused or named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskdm.datasets import parquet
from maskdm.runtime.errors import MaskDMError
from tests.raw_data import image_bytes, levels, place, prepared, settings

NAMES = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}})}


def table(numbers: range, **columns: Any) -> pa.Table:
    """Rows as `datasets` writes them."""
    images = [{"bytes": image_bytes(10 * number), "path": f"{number}.png"} for number in numbers]
    return pa.table({"image": images} | columns)


def write(path: Path, rows: pa.Table, group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, row_group_size=group)
    return path


def read(root: Path, tmp_path: Path, **changes: Any) -> Any:
    return prepared(settings("parquet", root=str(root), **{"holdout": 2} | changes), tmp_path)


def test_a_folder_of_hugging_face_is_read_with_its_split_and_its_class_names(tmp_path: Path) -> None:
    rows = [table(range(7), label=[n % 2 for n in range(7)]), table(range(7, 12), label=[1] * 5)]
    for number, part in enumerate(rows):
        write(tmp_path / f"set/data/train-0000{number}-of-00002.parquet", part.replace_schema_metadata(NAMES))
    write(tmp_path / "set/data/test-00000-of-00001.parquet", table(range(12, 15), label=[0] * 3))
    place(tmp_path / "set", {"README.md": b"", ".gitattributes": b""})
    data = read(tmp_path / "set", tmp_path, holdout=None, labels="label")
    assert sorted(levels(data.train)) == list(range(12))
    assert sorted(levels(data.heldout)) == [12, 13, 14]
    expected = [n % 2 for n in range(7)] + [1] * 5 + [0] * 3
    assert data.labels.tolist() == [expected[level] for level in levels(data.images)]
    assert data.info["left_out"] == {
        "hidden": {"count": 1, "first": [".gitattributes"]}, "not images": {"count": 1, "first": ["README.md"]},
    }  # fmt: skip
    assert read(tmp_path / "set", tmp_path, holdout=None).labels is None


def test_columns_of_plain_bytes_and_labels_of_text_are_read(tmp_path: Path) -> None:
    rows = pa.table({"id": [1, 2, 3], "jpg": [image_bytes(10 * n) for n in range(3)], "kind": ["b", "a", "b"]})
    data = read(write(tmp_path / "a.parquet", rows), tmp_path, labels="kind")
    assert data.info["class_names"] == ["a", "b"]
    assert data.labels.tolist() == [(1, 0, 1)[level] for level in levels(data.images)]


def test_rows_are_found_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH", 2)
    write(tmp_path / "a.parquet", table(range(10)), group=7)
    raw = parquet.load(settings("parquet", root=str(tmp_path), holdout=1), tmp_path, tmp_path)
    assert levels(raw.read(index) for index in (9, 0, 6, 7, 2, 3, 8, 1, 5, 4)) == [9, 0, 6, 7, 2, 3, 8, 1, 5, 4]  # type: ignore[arg-type]
    assert raw.name(8) == "a.parquet: row 1 of group 1"


def test_rows_without_an_image_are_named(tmp_path: Path) -> None:
    images = [{"bytes": content} for content in (image_bytes(0), None, b"x", image_bytes(30), image_bytes(40))]
    data = read(write(tmp_path / "a.parquet", pa.table({"image": images})), tmp_path)
    assert sorted(levels(data.images)) == [0, 3, 4]
    assert data.info["left_out"]["unreadable"] == {
        "count": 2, "first": ["a.parquet: row 1 of group 0", "a.parquet: row 2 of group 0"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "labels", "says"),
    [
        (pa.table({"text": ["a"]}), None, r"no column of bytes \(text\)"),
        (pa.table({"a": [b"1"], "b": [b"2"]}), None, r"several columns of bytes \(a, b\)"),
        (table(range(3)), "label", "data.labels=label; allowed: a column, of image"),
        (table(range(3)), "image", "allowed: a column of whole numbers or texts, this is of struct"),
        (table(range(3), label=[0, None, 1]), "label", "data.labels=label: classes of the types NoneType, int"),
        (table(range(3), label=[0, -1, 1]).replace_schema_metadata(NAMES), "label", "-1; allowed: 0 to 1"),
        (table(range(0)), None, "no column of bytes|no rows in 1 files"),
    ],
)
def test_columns_that_do_not_fit_are_one_line(tmp_path: Path, rows: pa.Table, labels: str | None, says: str) -> None:
    with pytest.raises(MaskDMError, match=says) as error:
        read(write(tmp_path / "a.parquet", rows), tmp_path, labels=labels)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "prepared").exists()


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(range(6)))
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-20], whole[: len(whole) // 2], b"x" * 500):
        path.write_bytes(content)
        with pytest.raises(MaskDMError, match=r"a\.parquet: truncated, damaged, or no Parquet file") as error:
            read(path, tmp_path)
        assert "\n" not in str(error.value)


def test_files_of_different_columns_are_one_line(tmp_path: Path) -> None:
    write(tmp_path / "s/a.parquet", table(range(3)))
    write(tmp_path / "s/b.parquet", pa.table({"photo": [image_bytes(0)]}))
    with pytest.raises(MaskDMError, match=r"b\.parquet: no column image, which other files have"):
        read(tmp_path / "s", tmp_path)
