"""WebDataset: samples of tar archives, with labels and a split, and what is refused or named."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from maskdm.datasets.left_out import UNREADABLE
from maskdm.runtime.errors import MaskDMError
from tests.raw_data import image_bytes, levels, place, prepared, settings


def shard(path: Path, files: dict[str, bytes], kind: bytes = tarfile.REGTYPE, target: str = "") -> Path:
    """Append files to an archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "a") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, target
            archive.addfile(member, io.BytesIO(content))
    return path


def samples(numbers: range, **others: Any) -> dict[str, bytes]:
    """Image, class and description of each."""
    files = {}
    for number in numbers:
        files[f"a.b/{number:04d}.png"] = image_bytes(10 * number)
        files[f"a.b/{number:04d}.json"] = b"{}"
        for suffix, label in others.items():
            files[f"a.b/{number:04d}.{suffix}"] = str(label(number)).encode()
    return files


def read(root: Path, tmp_path: Path, **changes: Any) -> Any:
    return prepared(settings("webdataset", root=str(root), **{"holdout": 2} | changes), tmp_path)


def test_all_archives_of_a_folder_are_read(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / "shards" / f"{number:05d}.tar", samples(range(4 * number, 4 * number + 4)))
    data = read(tmp_path / "shards", tmp_path)
    assert sorted(levels(data.images)) == list(range(12))
    assert data.labels is None
    assert data.info["files_found"] == 12
    assert data.info["left_out"] == {}
    one = read(tmp_path / "shards" / "00001.tar", tmp_path)
    assert sorted(levels(one.images)) == [4, 5, 6, 7]


def test_labels_lie_beside_the_images(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", samples(range(12), cls=lambda n: 11 - n, txt=lambda n: "ab"[n % 2]))
    data = read(tmp_path / "a.tar", tmp_path, labels="cls")
    assert data.info["class_names"] == [str(n) for n in range(12)]  # in the order of the numbers
    assert data.labels.tolist() == [11 - level for level in levels(data.images)]
    data = read(tmp_path / "a.tar", tmp_path, labels="txt")
    assert data.info["class_names"] == ["a", "b"]
    assert data.labels.tolist() == [level % 2 for level in levels(data.images)]


def test_names_of_archives_may_be_a_split(tmp_path: Path) -> None:
    shard(tmp_path / "s" / "train-0.tar", samples(range(5)))
    shard(tmp_path / "s" / "val-0.tar", samples(range(5, 7)))
    shard(tmp_path / "s" / "extra-0.tar", samples(range(7, 9)))
    data = read(tmp_path / "s", tmp_path, holdout=None)
    assert sorted(levels(data.train)) == list(range(5))
    assert sorted(levels(data.heldout)) == [5, 6]
    assert data.info["left_out"] == {"outside of train and test": {"count": 1, "first": ["extra-0.tar"]}}


def test_what_is_no_regular_file_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", samples(range(4)) | {"../../up.png": image_bytes(50)})
    for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("tty.png", tarfile.CHRTYPE)):
        shard(path, {name: b""}, kind, "/etc/passwd")
    shard(path, {"text.png": b"no image", "only.json": b"{}"})
    data = read(path, tmp_path)
    assert sorted(levels(data.images)) == [0, 1, 2, 3, 5]
    assert data.info["left_out"] == {
        "not images": {"count": 1, "first": ["a.tar/only"]},
        UNREADABLE: {"count": 4, "first": ["a.tar/hard.png", "a.tar/link.png", "a.tar/text.png", "a.tar/tty.png"]},
    }
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.tar", "prepared"]


def test_a_doubled_name_is_read_once_and_the_last_counts(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", samples(range(4)))
    shard(path, {"a.b/0001.png": image_bytes(90)})
    assert sorted(levels(read(path, tmp_path).images)) == [0, 2, 3, 9]


@pytest.mark.parametrize(
    ("files", "labels", "says"),
    [
        (samples(range(3)), "cls", r"a\.b/0000\.cls is missing \(data\.labels=cls\)"),
        (samples(range(3), cls=lambda n: "x" if n else 1), "cls", "classes of the types int, str"),
        ({"1.png": image_bytes(0), "1.cls": b"\xff"}, "cls", r"1\.cls: allowed: a whole number or a text"),
        ({"1.png": image_bytes(0), "1.cls": bytes(5000)}, "cls", "5000 bytes are no label"),
        ({"1.jpg": image_bytes(0), "1.seg.png": image_bytes(0)}, None, r"1\.jpg and 1\.seg\.png are images of one"),
        ({"1.json": b"{}"}, None, "no images in 1 archives"),
    ],
)
def test_samples_that_do_not_fit_are_one_line(
    tmp_path: Path, files: dict[str, bytes], labels: str | None, says: str
) -> None:
    path = shard(tmp_path / "a.tar", files)
    with pytest.raises(MaskDMError, match=says) as error:
        read(path, tmp_path, labels=labels)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", bytes(600), b"x" * 5000])
def test_what_is_no_archive_is_one_line(tmp_path: Path, content: bytes) -> None:
    place(tmp_path / "s", {"a.tar": content})
    with pytest.raises(MaskDMError, match=r"s: no images in 1 archives|a\.tar: truncated, damaged, or no tar") as error:
        read(tmp_path / "s", tmp_path)
    assert "\n" not in str(error.value)


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", samples(range(6)))
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-2]
    for end in (last.offset + 100, last.offset_data + 5):
        path.write_bytes(whole[:end])
        with pytest.raises(MaskDMError, match=r"a\.tar: truncated, damaged, or no tar archive"):
            read(path, tmp_path)


def test_without_archives_the_line_says_what_to_place_where(tmp_path: Path) -> None:
    with pytest.raises(MaskDMError, match=r"raw/webdataset: no \.tar files; place there: WebDataset.s archives"):
        prepared(settings("webdataset", holdout=1), tmp_path)


def test_hidden_files_of_an_archive_are_named(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {f"{prefix}0001.png": b"" for prefix in ("._", "x/.", ".cache/")} | samples(range(8)))
    data = read(tmp_path / "a.tar", tmp_path)
    assert data.info["left_out"]["hidden"]["first"] == [
        "a.tar/._0001.png",
        "a.tar/.cache/0001.png",
        "a.tar/x/.0001.png",
    ]
    assert sorted(levels(data.images)) == list(range(8))


def test_names_with_dots_are_one_line_that_says_why(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {f"22.{number:02d}.png": image_bytes(number) for number in range(8)})
    with pytest.raises(MaskDMError, match=r"22\.00\.png and 22\.01\.png .* first dot; .* data\.name: image_folder"):
        read(tmp_path / "a.tar", tmp_path)
