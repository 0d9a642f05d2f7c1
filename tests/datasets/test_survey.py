"""What a look at images finds."""

import io
import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from maskdm.datasets.survey import LOOK, Survey, survey
from maskdm.runtime.errors import MaskDMError
from tests.raw_data import image_bytes, place, tar_of


def pictures(count: int, size: tuple[int, int] = (24, 20), colour: bool = False) -> dict[str, bytes]:
    """Images of noise, no two alike."""
    random, files = np.random.default_rng(size[0]), {}
    for index in range(count):
        pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).convert("RGB" if colour else "L").save(file, "PNG")
        files[f"{size[0]}x{size[1]}-{index:04d}.png"] = file.getvalue()
    return files


def test_count_sizes_colour_crop_damage_and_copies_are_found(tmp_path: Path) -> None:
    files = pictures(6) | pictures(3, (40, 10)) | {"a.pdf": b"%PDF", "torn.png": image_bytes(3)[:40]}
    files["copy.png"] = files["24x20-0002.png"]
    found = survey(place(tmp_path / "images", files))
    assert (found.count, found.looked_at, found.damaged, found.copies, found.usable) == (11, 11, 1, 1, 9)
    assert (found.in_colour, found.side) == (0, 20)
    assert sorted(found.cropped) == pytest.approx(7 * [1 - 20 / 24] + 3 * [0.75])
    assert found.unreadable[0].startswith("torn.png: ")
    assert found.heldout is None
    assert found.classes is None


def test_a_pixel_of_colour_is_colour(tmp_path: Path) -> None:
    assert survey(place(tmp_path, pictures(3) | pictures(2, (9, 9), colour=True))).in_colour == 2


def test_folders_of_enough_images_look_like_classes_and_train_and_test_are_a_split(tmp_path: Path) -> None:
    files = {f"{part}/{name}/{file}": content for file, content in pictures(10).items()
             for part in ("train", "test") for name in ("cat", "dog")}  # fmt: skip
    found = survey(place(tmp_path, files))
    assert found.heldout == 20
    assert found.classes == {"cat": 20, "dog": 20}
    few = survey(place(tmp_path / "few", {f"{name}/{file}": b for name in "ab" for file, b in pictures(9).items()}))
    assert few.classes is None


def test_an_archive_is_looked_at_like_a_folder(tmp_path: Path) -> None:
    files = pictures(4)
    tar_of(tmp_path / "images.tar.gz", files)
    from_folder, from_tar = survey(place(tmp_path / "folder", files)), survey(tmp_path / "images.tar.gz")
    assert (from_tar.count, from_tar.shorter_sides) == (from_folder.count, from_folder.shorter_sides)


def test_of_many_images_only_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = pictures(80)
    files |= {f"copy-{name}": content for name, content in list(files.items())[:40]}
    files["torn.png"] = b""
    monkeypatch.setattr("maskdm.datasets.survey.LOOK", 30)
    monkeypatch.setattr("maskdm.datasets.survey.HASH", 60)
    found = survey(place(tmp_path, files))
    assert (found.count, found.looked_at) == (121, 30)
    assert 20 <= found.copies <= 80  # 40, by half of the files
    assert found.lines()[0] == f"121 images, listed in {found.listing_seconds:.2g} s; looked at 30 of them"
    monkeypatch.setattr("maskdm.datasets.survey.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("maskdm.datasets.survey.FEWEST", 5)
    assert survey(tmp_path).looked_at == 5


def test_a_name_with_a_line_break_stays_on_its_line(tmp_path: Path) -> None:
    found: Survey = survey(place(tmp_path, pictures(3) | {"a\nb.png": b"torn"}))
    assert all("\n" not in line for line in found.lines())


def test_many_copies_are_never_more_than_there_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = list(pictures(4).values())
    monkeypatch.setattr("maskdm.datasets.survey.HASH", 40)
    sizes = {len(content) for content in contents}
    padded = [content + bytes(max(sizes) - len(content)) for content in contents]  # of equal size, as copies may be
    found = survey(place(tmp_path, {f"{index}.png": padded[index % 4] for index in range(400)}))
    assert (found.copies, found.usable) == (396, 4)


class Entry:
    """A file of a folder that is not there."""

    def __init__(self, index: int) -> None:
        self.name, self.index = f"image-of-a-large-set-{index:07d}.png", index

    def is_dir(self) -> bool:
        return False

    def is_symlink(self) -> bool:
        return False

    def stat(self) -> SimpleNamespace:
        return SimpleNamespace(st_size=1000 + self.index, st_dev=1, st_ino=self.index, st_mtime_ns=0)


def test_of_very_many_files_little_is_kept_and_few_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million files take ten times as much."""
    count, read, scandir = 100_000, list[str](), os.scandir
    content = next(iter(pictures(1).values()))

    def kept(_: Path, name: str) -> bytes:
        read.append(name)
        return content

    def listed(path: Path) -> object:
        return map(Entry, range(count)) if path == tmp_path / "" else scandir(path)

    monkeypatch.setattr("maskdm.datasets.trees._read_file", kept)
    monkeypatch.setattr("maskdm.datasets.trees.os.scandir", listed)
    tracemalloc.start()
    found = survey(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.count == count
    assert len(read) == found.looked_at == LOOK
    assert peak < 1000 * count, "bytes"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no images"),
        ({"a.pdf": b"%PDF", "b.pdf": b"%PDF"}, r"no images \(not images: 2 \(a.pdf, b.pdf\)\)"),
        ({"a.png": b"torn", "b.png": b""}, "none of 2 images can be read"),
    ],
)
def test_no_image_is_one_line(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    tmp_path.mkdir(exist_ok=True)
    with pytest.raises(MaskDMError, match=message):
        survey(place(tmp_path, files))
