"""What is read of a folder or an archive: each file once, whatever its names, and nothing left out without a word."""

import bz2
import gzip
import lzma
import os
import socket
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskdm.datasets import folders
from maskdm.datasets.left_out import FILE
from maskdm.datasets.prepared import PreparedData
from maskdm.datasets.raw import UnreadableImageError
from maskdm.runtime.errors import MaskDMError
from tests.raw_data import grey_levels, image_bytes, levels, place, prepared, settings

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
OPEN: dict[str, Any] = {".tar": open, ".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of eight images that their grey level tells apart."""
    return place(tmp_path / "images", grey_levels(8))


def read(root: Path, tmp_path: Path, **changes: Any) -> PreparedData:
    data = prepared(settings("image_folder", root=str(root), **{"holdout": 2} | changes), tmp_path)
    used, left_out = len(data.images), data.info["left_out"]
    assert data.info["files_found"] == used + sum(part["count"] for part in left_out.values())
    return data


def left_out(data: PreparedData) -> dict[str, list[str]]:
    assert all(part["count"] == len(part["first"]) for part in data.info["left_out"].values())
    return {reason: part["first"] for reason, part in data.info["left_out"].items()}


def archive_of(folder: Path, archive: Path) -> Path:
    """A tar or zip archive as the usual programs make it, second names and links stored as such."""
    if archive.suffix != ".zip":
        with OPEN[archive.suffix](archive, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            tar.add(folder, arcname=".")
        return archive
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            info = zipfile.ZipInfo(str(path.relative_to(folder)))
            if path.is_symlink():
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                file.writestr(info, os.readlink(path))
            elif path.is_file():
                file.writestr(info, path.read_bytes())
    return archive


# --- one file, many names -----------------------------------------------------------------------------------


def test_a_link_to_a_folder_above_it_ends(images: Path, tmp_path: Path) -> None:
    place(images, {"a/b/008.png": image_bytes(80)})
    (images / "a" / "all").symlink_to("..")
    (images / "a" / "b" / "up").symlink_to(images.parent)  # even above the root
    data = read(images, tmp_path)
    assert sorted(levels(data.images)) == list(range(9))
    assert left_out(data) == {"second names": ["a/all/", "a/b/up/"]}


def test_folders_that_link_to_each_other_end(images: Path, tmp_path: Path) -> None:
    other = place(tmp_path / "other", {"008.png": image_bytes(80)})
    (images / "other").symlink_to(other)
    (other / "back").symlink_to(images)
    (other / "itself").symlink_to("itself")
    data = read(images, tmp_path)
    assert sorted(levels(data.images)) == list(range(9))
    assert left_out(data) == {"not images": ["other/itself"], "second names": ["other/back/"]}


def test_a_linked_folder_on_another_disk_is_read(images: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "faces").symlink_to(images)
    data = read(tmp_path / "root", tmp_path)
    assert sorted(levels(data.images)) == list(range(8))
    assert data.info["left_out"] == {}
    assert not (tmp_path / "prepared" / FILE).exists()


def test_a_link_to_a_sibling_is_a_second_name_whichever_comes_first(images: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    images.rename(root / "images")
    (root / "all").symlink_to("images")
    (root / "000.png").symlink_to("images/003.png")
    data = read(root, tmp_path)
    assert sorted(levels(data.images)) == list(range(8))
    assert left_out(data) == {"second names": ["000.png", "all/"]}


def test_names_that_were_left_out_are_listed_whole_beside_the_array(images: Path, tmp_path: Path) -> None:
    for index in range(30):
        os.link(images / "000.png", images / f"copy{index:02d}.png")
    info = read(images, tmp_path).info
    assert info["left_out"]["second names"]["count"] == 30
    assert info["left_out"]["second names"]["first"] == [f"copy{index:02d}.png" for index in range(10)]
    listed = (tmp_path / "prepared" / FILE).read_text()
    assert all(f"copy{index:02d}.png" in listed for index in range(30))


def names_of_all_kinds(folder: Path) -> Path:
    place(folder, grey_levels(6, "b/") | {"blobs/0a1b": image_bytes(60), ".store/7": image_bytes(70)})
    (folder / "a").mkdir()
    for index in range(3):
        os.link(folder / "b" / f"{index:03d}.png", folder / "a" / f"hard{index}.png")
        (folder / "a" / f"soft{index}.png").symlink_to(f"../b/{index + 3:03d}.png")
    (folder / "006.png").symlink_to("blobs/0a1b")  # the only names of these two that are an image's
    (folder / "007.png").symlink_to(".store/7")
    return folder


def test_a_folder_and_its_tar_are_the_same_images(tmp_path: Path) -> None:
    folder = names_of_all_kinds(tmp_path / "folder")
    (folder / "latest").symlink_to("b")
    (folder / "c.png").symlink_to("latest/000.png")
    archive = archive_of(folder, tmp_path / "archive.tar")
    from_folder, from_tar = read(folder, tmp_path), read(archive, tmp_path)
    assert sorted(levels(from_folder.images)) == list(range(8))
    assert from_tar.info["sha256"] == from_folder.info["sha256"]
    assert left_out(from_tar) == left_out(from_folder) == {
        "hidden": [".store/"],
        "not images": ["blobs/0a1b"],
        "second names": ["a/soft0.png", "a/soft1.png", "a/soft2.png", "b/000.png", "b/001.png", "b/002.png", "c.png",
                         "latest/"],
    }  # fmt: skip


def test_a_zip_with_links_has_each_image_once(tmp_path: Path) -> None:
    archive = archive_of(names_of_all_kinds(tmp_path / "folder"), tmp_path / "archive.zip")
    data = read(archive, tmp_path)
    assert set(levels(data.images)) == set(range(8))
    assert left_out(data)["second names"] == ["a/soft0.png", "a/soft1.png", "a/soft2.png"]
    # A zip stores the other names as files of their own: they are copies.
    assert sum(data.info["duplicates"].values()) == 3


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_links_out_of_an_archive_are_named_and_not_followed(images: Path, tmp_path: Path, suffix: str) -> None:
    place(tmp_path, {"secret.png": image_bytes(200)})
    (images / "up.png").symlink_to("../secret.png")
    (images / "absolute.png").symlink_to(tmp_path / "secret.png")
    data = read(archive_of(images, tmp_path / f"a{suffix}"), tmp_path)
    assert sorted(levels(data.images)) == list(range(8))
    assert left_out(data) == {"unreadable": ["absolute.png", "up.png"]}


def test_a_tar_cannot_write_through_its_own_links(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name, target in (("d1/d2/d3", "."), ("out", str(tmp_path / "victim")), ("d1/d2/d3/up", "../../../..")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        for name in ("out/a.png", "d1/d2/d3/up/b.png", "c.png", "d.png"):
            place(tmp_path, {"image.png": image_bytes(10 * ord(name[-5]) % 256)})
            archive.add(tmp_path / "image.png", arcname=name)
    data = read(tmp_path / "evil.tar", tmp_path, holdout=1)
    assert len(data.images) == 4
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_doubled_name_in_an_archive_is_read_once_and_the_last_counts(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"twice{suffix}"
    files = [(f"{'./' * (level > 5)}{level % 5}.png", image_bytes(10 * level)) for level in range(10)]
    if suffix == ".zip":
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(archive, "w") as file:
            for name, content in files:
                file.writestr(name, content)
    else:
        with tarfile.open(archive, "w") as tar:
            for name, content in files:
                tar.add(place(tmp_path, {"image.png": content}) / "image.png", arcname=name)
    data = read(archive, tmp_path)
    assert sorted(levels(data.images)) == list(range(5, 10))
    assert data.info["left_out"]["second names"]["count"] == 5


def test_the_class_of_a_linked_face_is_the_folder_of_its_file(images: Path, tmp_path: Path) -> None:
    (images / "all").mkdir()
    (images / "subset").mkdir()
    for path in list(images.glob("*.png")):
        path.rename(images / "all" / path.name)
    for path in (images / "all").iterdir():
        (images / "subset" / path.name).symlink_to(f"../all/{path.name}")
    data = prepared(settings("vggface2", holdout=1, root=str(archive_of(images, tmp_path / "faces.tar"))), tmp_path)
    assert data.info["class_names"] == ["all"]
    assert data.info["left_out"]["second names"]["count"] == 8


# --- what cannot be read, and what is no image ----------------------------------------------------------------


def make_socket(path: Path) -> None:
    os.chdir(path.parent)  # its path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


IN_THE_WAY: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: None,
    "dangling": lambda path: path.symlink_to("/nonexistent/gone.png"),
    "loop": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "pipe": lambda path: os.mkfifo(path),
    "socket": make_socket,
    "folder": lambda path: path.mkdir(),
}


@pytest.fixture
def _back_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(".")


@pytest.mark.usefixtures("_back_again")
@pytest.mark.parametrize("kind", [kind for kind in IN_THE_WAY if kind not in ("nothing", "folder")])
def test_one_bad_file_is_named_and_the_rest_goes_on(
    images: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    IN_THE_WAY[kind](images / "bad.png")
    data = read(images, tmp_path)
    assert sorted(levels(data.images)) == list(range(8))
    assert left_out(data) == {"unreadable": ["bad.png"]}
    assert "left out: bad.png: " in capsys.readouterr().err


@pytest.mark.usefixtures("_back_again")
@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_a_file_that_is_something_else_when_its_turn_comes_is_unreadable(
    images: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "scratch").mkdir()
    raw = folders.load(settings("image_folder", root=str(images)), tmp_path / "raw", tmp_path / "scratch")
    (images / "003.png").unlink()
    IN_THE_WAY[kind](images / "003.png")
    assert raw.names is not None
    with pytest.raises(UnreadableImageError, match=r"^003\.png: [^/]+$"):  # the reason without a path
        raw.read(raw.names.index("003.png"))
    assert raw.read(4).shape == (3, 16, 16)


def test_a_sub_folder_that_may_not_be_read_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place(images, {"lost+found/008.png": image_bytes(80)})
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if not isinstance(path, int) and Path(path).name == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything, so that chmod is no test
    locked = "lost+found"
    data = read(images, tmp_path)
    assert sorted(levels(data.images)) == list(range(8))
    assert left_out(data) == {"unreadable": ["lost+found/"]}
    assert "left out: lost+found/: Permission denied" in capsys.readouterr().err
    locked = "images"
    with pytest.raises(MaskDMError, match=f"^{images}: Permission denied$"):
        read(images, tmp_path)


def test_what_is_no_image_is_counted_and_named(images: Path, tmp_path: Path) -> None:
    place(images, {"README": b"", "a.heic": b"", "b/c.txt": b"", "d.eps": b"%!PS", ".DS_Store": b"", ".git/x.png": b""})
    assert left_out(read(images, tmp_path)) == {
        "hidden": [".DS_Store", ".git/"],
        "not images": ["README", "a.heic", "b/c.txt", "d.eps"],
    }


def test_thumbnails_and_deleted_images_of_systems_are_no_images(images: Path, tmp_path: Path) -> None:
    names = ["@eaDir/000.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/a.png", "$RECYCLE.BIN/$R1.png", "$Recycle.Bin/b.png"]
    names += ["System Volume Information/c.png", "__MACOSX/._000.png"]
    place(images, dict.fromkeys(names, image_bytes(250)))
    for root in (images, archive_of(images, tmp_path / "all.zip")):
        data = read(root, tmp_path)
        assert sorted(levels(data.images)) == list(range(8))
        assert list(left_out(data)) == ["hidden"]


def zip_of_windows(path: Path, files: dict[str, bytes], **properties: int) -> Path:
    """What Windows makes: other slashes, and of more than 2 GB another method."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.create_system = 0
            archive.writestr(info, content)
            for key, value in properties.items():  # of the listing at the end, which is what is read
                setattr(info, key, value)
    return path


def test_a_zip_with_the_slashes_of_windows_keeps_its_folders(tmp_path: Path) -> None:
    files = {f"all\\{'test' if level > 5 else 'train'}\\{level}.png": image_bytes(10 * level) for level in range(8)}
    data = read(zip_of_windows(tmp_path / "a.zip", {"all\\": b"", **files}), tmp_path, holdout=None)
    assert sorted(levels(data.heldout)) == [6, 7]


@pytest.mark.parametrize("properties", [{"compress_type": 9}, {"flag_bits": 1}], ids=["deflate64", "encrypted"])
def test_a_zip_that_python_cannot_unpack_says_what_to_do(tmp_path: Path, properties: dict[str, int]) -> None:
    archive = zip_of_windows(tmp_path / "a.zip", grey_levels(8), **properties)
    with pytest.raises(MaskDMError, match=r"a\.zip: 000\.png is encrypted, or packed .* set data\.root to the folder$"):
        read(archive, tmp_path)


def test_what_lies_beside_an_archive_is_named(images: Path, tmp_path: Path) -> None:
    archive_of(images, place(tmp_path / "beside", {"notes.txt": b"", "._mine.zip": b""}) / "images.zip")
    data = read(tmp_path / "beside", tmp_path)
    assert sorted(levels(data.images)) == list(range(8))
    assert left_out(data) == {"hidden": ["._mine.zip"], "not images": ["notes.txt"]}


def test_without_any_image_the_error_says_what_there_is(tmp_path: Path) -> None:
    place(tmp_path / "raw" / "image_folder", {"a.heic": b"", "b.heic": b""})
    with pytest.raises(MaskDMError, match=r"no images \(not images: 2 \(a\.heic, b\.heic\)\); place there: "):
        prepared(settings("image_folder", holdout=1), tmp_path)


# --- damaged archives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image_folder", "cifar10"])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"<!DOCTYPE html>\n<html>503</html>\n", b"", bytes(5000)])
def test_what_is_no_archive_is_one_line(tmp_path: Path, name: str, suffix: str, content: bytes) -> None:
    archive = place(tmp_path, {f"page{suffix}": content}) / f"page{suffix}"
    with pytest.raises(MaskDMError) as error:
        prepared(settings(name, root=str(archive), holdout=1, image_size=32), tmp_path)
    assert str(error.value).startswith(f"{archive}: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_archive_is_named_or_gives_the_right_images(images: Path, tmp_path: Path, suffix: str) -> None:
    whole = archive_of(images, tmp_path / f"whole{suffix}").read_bytes()
    damaged = tmp_path / f"damaged{suffix}"
    random = np.random.default_rng(0)
    for trial in range(20):
        content = bytearray(whole)
        place_of_damage = int(random.integers(len(content)))
        if trial % 2:
            del content[place_of_damage:]
        else:
            content[place_of_damage : place_of_damage + 16] = random.bytes(16)
        damaged.write_bytes(content)
        try:
            found = levels(read(damaged, tmp_path, holdout=1).images)
        except MaskDMError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert len(set(found)) == len(found)


def test_what_follows_a_damaged_header_is_not_lost_without_a_word(images: Path, tmp_path: Path) -> None:
    archive = archive_of(images, tmp_path / "images.tar")
    with tarfile.open(archive) as file:
        middle = file.getmembers()[4].offset
    content = bytearray(archive.read_bytes())
    content[middle] ^= 255
    archive.write_bytes(content)
    with pytest.raises(MaskDMError, match=r"images\.tar: truncated, damaged, .*header"):
        read(archive, tmp_path)
