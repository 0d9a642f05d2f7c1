"""The split and the classes that folders of images say, and what is prepared with them."""

import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskdm.datasets.layout import Layout
from maskdm.runtime.errors import MaskDMError
from tests.raw_data import grey_levels, image_bytes, levels, place, prepared, settings


def split(*names: str) -> list[str]:
    """The names that are held out."""
    layout = Layout.of(list(names))
    return [name for name in names if layout.is_heldout(name)]


@pytest.mark.parametrize(
    "heldout", [["test"], ["val"], ["valid"], ["validation"], ["Test"], ["test", "val"], ["VALIDATION", "test"]]
)
@pytest.mark.parametrize("wrapper", ["", "set-main/", "a/b/"])
def test_train_and_test_folders_are_a_split_whatever_wraps_them(heldout: list[str], wrapper: str) -> None:
    train = [f"{wrapper}train/cat/1.png", f"{wrapper}train/1.png"]
    assert split(*train, *(f"{wrapper}{name}/cat/1.png" for name in heldout)) == [
        f"{wrapper}{name}/cat/1.png" for name in heldout
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.png", "train/2.png"],
        ["test/1.png", "val/2.png"],
        ["cat/train/1.png", "dog/test/2.png"],  # not the outermost folders
        ["train.png", "test.png"],
        ["trains/1.png", "tests/1.png"],
    ],
)
def test_anything_else_is_no_split(names: list[str]) -> None:
    assert Layout.of(names).heldout == {}


@pytest.mark.parametrize("wrapper", ["", "w/", "train/"])
def test_a_class_is_the_outermost_folder(wrapper: str) -> None:
    names = [f"{wrapper}cat/1.png", f"{wrapper}dog/old/2.png", f"{wrapper}dog/3.png"]
    assert [Layout.of(names).class_of(name) for name in names] == ["cat", "dog", "dog"]
    names = [f"w/{side}/{name}" for side in ("train", "val") for name in ("cat/1.png", "dog/old/2.png")]
    assert [Layout.of(names).class_of(name) for name in names] == ["cat", "dog"] * 2


folders = st.sampled_from(["train", "test", "val", "cat", "dog"])


@given(st.lists(st.lists(folders, max_size=3), min_size=1, max_size=6))
def test_the_folder_that_wraps_all_images_changes_nothing(paths: list[list[str]]) -> None:
    names = ["/".join([*path, f"{index}.png"]) for index, path in enumerate(paths)]
    wrapped = [f"w/{name}" for name in names]
    assert split(*wrapped) == [f"w/{name}" for name in split(*names)]
    assert Layout.of(wrapped).depth == Layout.of(names).depth + 1


# --- prepared -------------------------------------------------------------------------------------------------


def photographs(folder: Path) -> Path:
    """Levels 0 to 5 are for training, 6 to 8 are not; odd ones are dogs."""
    sides = ["train"] * 6 + ["test"] * 3
    return place(
        folder,
        {
            f"{side}/{'dog' if level % 2 else 'cat'}/{level}.png": image_bytes(10 * level)
            for level, side in enumerate(sides)
        },
    )


def test_a_published_split_and_its_classes_are_kept(tmp_path: Path) -> None:
    root = photographs(tmp_path / "images")
    data = prepared(settings("image_folder", root=str(root), labels="folders"), tmp_path)
    assert sorted(levels(data.train)) == [0, 1, 2, 3, 4, 5]
    assert sorted(levels(data.heldout)) == [6, 7, 8]
    assert data.info["class_names"] == ["cat", "dog"]
    assert data.labels is not None
    assert [level % 2 for level in levels(data.images)] == data.labels.tolist()
    bare = prepared(settings("image_folder", root=str(root)), tmp_path)
    assert bare.labels is None
    assert levels(bare.images) == levels(data.images)


def test_an_archive_that_is_wrapped_in_a_folder_is_the_same(tmp_path: Path) -> None:
    root = photographs(tmp_path / "images")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for path in root.rglob("*.png"):
            file.write(path, Path("images-main") / path.relative_to(root))
    prepared_of = [
        prepared(settings("image_folder", root=str(path), labels="folders"), tmp_path).info
        for path in (root, tmp_path / "images.zip")
    ]
    assert prepared_of[0]["sha256"] == prepared_of[1]["sha256"]
    assert prepared_of[0]["class_names"] == prepared_of[1]["class_names"]


def test_a_holdout_beside_a_split_and_no_holdout_without_one_are_refused(tmp_path: Path) -> None:
    root = photographs(tmp_path / "images")
    with pytest.raises(MaskDMError, match=r"data\.holdout=2 .*allowed: null \(it has 3 held-out images of its own\)"):
        prepared(settings("image_folder", root=str(root), holdout=2), tmp_path)
    with pytest.raises(MaskDMError, match=r"data\.holdout=null .*allowed: 1 to 5"):
        prepared(settings("image_folder", root=str(root / "train")), tmp_path)


def test_what_lies_beside_a_split_is_left_out_and_named(tmp_path: Path) -> None:
    root = place(photographs(tmp_path / "images"), {"grid.png": image_bytes(90), "extra/cat/9.png": image_bytes(90)})
    data = prepared(settings("image_folder", root=str(root), labels="folders"), tmp_path)
    assert len(data.images) == 9
    outside = {"count": 2, "first": ["extra/cat/9.png", "grid.png"]}
    assert data.info["left_out"] == {"outside of train and test": outside}


def test_a_file_on_both_sides_of_a_split_is_held_out(tmp_path: Path) -> None:
    root = photographs(tmp_path / "images")
    (root / "val").mkdir()
    (root / "val" / "link.png").symlink_to("../train/cat/0.png")
    os.link(root / "test" / "cat" / "6.png", root / "train" / "cat" / "6.png")
    data = prepared(settings("image_folder", root=str(root)), tmp_path)
    assert sorted(levels(data.heldout)) == [0, 6, 7, 8]
    assert sorted(levels(data.train)) == [1, 2, 3, 4, 5]
    assert data.info["left_out"]["second names"]["first"] == ["train/cat/0.png", "train/cat/6.png"]


def test_an_image_without_a_class_is_named(tmp_path: Path) -> None:
    place(tmp_path / "raw" / "image_folder", grey_levels(3, "cat/") | {"stray.png": image_bytes(99)})
    with pytest.raises(MaskDMError, match=r"^stray\.png: with data\.labels=folders; allowed: "):
        prepared(settings("image_folder", holdout=1, labels="folders"), tmp_path)
