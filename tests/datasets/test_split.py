"""The split: copies of an image are on one side, a published split is kept, and both are counted."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskdm.config.params import Data
from maskdm.datasets.duplicates import count_duplicates, pixel_digest
from maskdm.datasets.left_out import COPIES
from maskdm.datasets.raw import RawImages
from maskdm.datasets.split import split
from maskdm.runtime.errors import MaskDMError
from tests.raw_data import image_bytes, levels, place, prepared, settings


def raw_of(pictures: list[int], heldout: list[bool] | None = None) -> RawImages:
    """Images of one pixel; equal numbers are copies."""
    pixels = np.array(pictures, np.uint8).reshape(-1, 1, 1, 1)
    return RawImages(
        "drawn", {}, len(pixels), pixels.__getitem__, heldout=None if heldout is None else np.array(heldout)
    )


def sides(raw: RawImages, data: Data) -> tuple[list[int], list[int]]:
    train, heldout = split(raw, data)
    trained = [int(image.pixels.item()) for image in train]
    return trained, [int(image.pixels.item()) for image in heldout]


pictures = st.lists(st.integers(0, 9), min_size=2, max_size=30)


@given(pictures, st.integers(1, 29), st.none() | st.integers(1, 30))
def test_no_image_is_on_both_sides_of_a_drawn_split(numbers: list[int], holdout: int, wanted: int | None) -> None:
    raw = raw_of(numbers)
    train, heldout = sides(raw, settings("image_folder", holdout=holdout, train_images=wanted))
    assert not set(train) & set(heldout)
    assert len(set(heldout)) == len(heldout) == min(holdout, len(set(numbers)))
    if wanted is None:
        assert len(train) + len(heldout) + raw.left_out.count(COPIES) == len(numbers)
        assert set(train) | set(heldout) == set(numbers)
        kept = [n for n in numbers if n not in heldout]
        assert sorted(train) == sorted(kept)  # copies within the training set are the user's


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=30))
def test_a_published_split_is_kept_and_its_duplicates_are_counted(images: list[tuple[int, bool]]) -> None:
    numbers, heldout = [number for number, _ in images], [side for _, side in images]
    raw = raw_of(numbers, heldout)
    train, held = sides(raw, settings("image_folder"))
    assert sorted(train) == sorted(number for number, side in images if not side)
    assert sorted(held) == sorted(number for number, side in images if side)
    assert not raw.left_out


@given(pictures, pictures)
def test_duplicates_are_counted(train: list[int], heldout: list[int]) -> None:
    digests = (b"".join(pixel_digest(np.array([n], np.uint8)) for n in side) for side in (train, heldout))
    assert count_duplicates(*digests) == {
        "within_train": len(train) - len(set(train)),
        "within_heldout": len(heldout) - len(set(heldout)),
        "train_and_heldout": sum(number in heldout for number in train),
    }


def test_digests_with_zeros_at_their_end_are_told_apart() -> None:
    first, second = b"a" * 14 + b"\1\0", b"a" * 14 + b"\0\0"
    assert count_duplicates(first + second, second) == {"within_train": 0, "within_heldout": 0, "train_and_heldout": 1}


# --- prepared -------------------------------------------------------------------------------------------------


def test_without_copies_the_order_is_the_one_of_the_shuffle(tmp_path: Path) -> None:
    """The same array as before copies were looked for."""
    place(tmp_path / "raw" / "image_folder", {f"{level:02d}.png": image_bytes(10 * level) for level in range(12)})
    data = prepared(settings("image_folder", holdout=4), tmp_path)
    order = np.random.default_rng(0).permutation(12).tolist()
    assert levels(data.heldout) == order[:4]
    assert levels(data.train) == order[4:]
    assert data.info["duplicates"] == {
        "within_train": 0, "within_heldout": 0, "train_and_heldout": 0, "left_out": 0,
    }  # fmt: skip


def test_copies_of_held_out_images_are_left_out_and_listed(tmp_path: Path) -> None:
    files = {f"{copy}-{level}.png": image_bytes(10 * level) for level in range(6) for copy in "abc"}
    files |= {f"d-{level}.bmp": image_bytes(10 * level, kind="BMP") for level in range(6)}  # other files, same pixels
    place(tmp_path / "raw" / "image_folder", files)
    data = prepared(settings("image_folder", holdout=2), tmp_path)
    assert len(set(levels(data.heldout))) == 2
    assert sorted(levels(data.train)) == sorted(4 * [level for level in range(6) if level not in levels(data.heldout)])
    assert data.info["duplicates"] == {
        "within_train": 12, "within_heldout": 0, "train_and_heldout": 0, "left_out": 6,
    }  # fmt: skip
    assert data.info["left_out"][COPIES]["count"] == 6
    assert data.info["files_found"] == 24


def test_copies_across_a_published_split_are_reported_and_stay(tmp_path: Path) -> None:
    files = {f"train/{index}.png": image_bytes(10 * level) for index, level in enumerate((0, 1, 1, 2, 3))}
    files |= {f"test/{index}.png": image_bytes(10 * level) for index, level in enumerate((1, 3, 4))}
    place(tmp_path / "raw" / "image_folder", files)
    data = prepared(settings("image_folder"), tmp_path)
    assert sorted(levels(data.train)) == [0, 1, 1, 2, 3]
    assert sorted(levels(data.heldout)) == [1, 3, 4]
    assert data.info["duplicates"] == {
        "within_train": 1, "within_heldout": 0, "train_and_heldout": 3, "left_out": 0,
    }  # fmt: skip


def test_too_few_different_images_is_one_line(tmp_path: Path) -> None:
    place(tmp_path / "raw" / "image_folder", {f"{index}.png": image_bytes(70) for index in range(8)})
    with pytest.raises(MaskDMError, match=r"0 for training and 1 held out; left out: copies of held-out images: 7 \("):
        prepared(settings("image_folder", holdout=2), tmp_path)
