"""LMDB: LSUN's images are the same from the database and exported; and what is refused or named."""

from pathlib import Path
from typing import Any

import pytest

from maskdm.runtime.errors import MaskDMError
from tests.raw_data import database, image_bytes, levels, place, prepared, settings


def images(count: int) -> dict[str, bytes]:
    """By keys like LSUN's, in another order than their levels."""
    return {f"{(7 * number) % 16:x}{number:07x}": image_bytes(10 * number, kind="WEBP") for number in range(count)}


def read(name: str, root: Path, tmp_path: Path, **changes: Any) -> Any:
    return prepared(settings(name, root=str(root), **{"holdout": 3} | changes), tmp_path)


def test_lsun_is_the_same_from_its_database_and_exported(tmp_path: Path) -> None:
    database(tmp_path / "lsun" / "church_outdoor_train_lmdb", images(12))
    place(tmp_path / "exported", {f"{'/'.join(key[:6])}/{key}.webp": content for key, content in images(12).items()})
    from_files = read("lsun_church", tmp_path / "exported", tmp_path)
    from_database = read("lsun_church", tmp_path / "lsun", tmp_path)
    assert len(from_database.images) == 12
    assert from_database.info["sha256"] == from_files.info["sha256"]
    assert list(from_database.info["files"]) == ["data.mdb"]
    directly = read("lmdb", tmp_path / "lsun" / "church_outdoor_train_lmdb", tmp_path)
    assert directly.info["sha256"] == from_files.info["sha256"]


def test_values_that_are_no_images_are_named(tmp_path: Path) -> None:
    path = database(tmp_path / "a", images(6) | {"num-samples": b"6", "\x00\n": b""})
    data = read("lmdb", path, tmp_path)
    assert sorted(levels(data.images)) == list(range(6))
    assert data.info["left_out"] == {"unreadable": {"count": 2, "first": ["\x00\n", "num-samples"]}}


@pytest.mark.parametrize("content", [b"", b"lmdb", b"x" * 50_000])
def test_what_is_no_database_is_one_line(tmp_path: Path, content: bytes) -> None:
    place(tmp_path / "a", {"data.mdb": content})
    with pytest.raises(MaskDMError, match=r"a/data\.mdb: truncated, damaged, or no LMDB") as error:
        read("lmdb", tmp_path / "a", tmp_path)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "data.mdb"]


def test_a_truncated_database_does_not_kill_the_process(tmp_path: Path) -> None:
    path = database(tmp_path / "a", {f"{n:04d}": bytes([n]) * 5000 for n in range(100)}) / "data.mdb"
    content = path.read_bytes()
    for end in (5000, 20_000, len(content) // 2, len(content) - 4096):
        path.write_bytes(content[:end])
        with pytest.raises(MaskDMError, match=r"a/data\.mdb: truncated, damaged, or no LMDB"):
            read("lmdb", tmp_path / "a", tmp_path)


def test_none_several_and_empty_ones_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(MaskDMError, match=r"raw/lmdb: no data\.mdb; place there: the folder of an LMDB"):
        prepared(settings("lmdb", holdout=1), tmp_path)
    database(tmp_path / "two" / "train", images(3))
    database(tmp_path / "two" / "val", {})
    with pytest.raises(MaskDMError, match=r"two: several LMDBs \(train, val\); set data\.root"):
        read("lmdb", tmp_path / "two", tmp_path)
    with pytest.raises(MaskDMError, match="val: an empty LMDB"):
        read("lmdb", tmp_path / "two" / "val", tmp_path)


@pytest.mark.parametrize("name", ["image_folder", "celeba"])
def test_another_kind_of_data_set_says_how_an_lmdb_is_read(tmp_path: Path, name: str) -> None:
    database(tmp_path / "a", images(3))
    with pytest.raises(MaskDMError, match=r"a: an LMDB; allowed: its folder, unpacked, with data\.name: lmdb"):
        read(name, tmp_path / "a", tmp_path)
