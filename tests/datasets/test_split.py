"""The split: copies of an image are on one side, a published split is kept, and both are counted."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from maskdm.config.params import Data
from maskdm.datasets.decoded import DecodedImages
from maskdm.datasets.duplicates import count_duplicates, pixel_digest
from maskdm.datasets.left_out import COPIES
from maskdm.datasets.raw import RawImages, UnreadableImageError
from maskdm.datasets.split import split
from maskdm.runtime.errors import MaskDMError
from tests.raw_data import image_bytes, levels, place, prepared, settings

DAMAGED = 9  # a picture that cannot be read


def raw_of(pictures: list[int], heldout: list[bool] | None = None) -> RawImages:
    """Images of one pixel; equal numbers are copies."""

    def read(index: int) -> np.ndarray:
        if pictures[index] == DAMAGED:
            raise UnreadableImageError(f"image {index}", "damaged")
        return np.full((1, 1, 1), pictures[index], np.uint8)

    return RawImages("drawn", {}, len(pictures), read, heldout=None if heldout is None else np.array(heldout))


def sides(raw: RawImages, data: Data) -> tuple[list[int], list[int]]:
    with TemporaryDirectory() as folder:
        train, heldout = split(raw, data, DecodedImages(raw, Path(folder), [1, 1, 1], header=0))
    trained = [int(raw.read(index).item()) for index in train.indices]
    return trained, [int(raw.read(index).item()) for index in heldout.indices]


pictures = st.lists(st.integers(0, 8), min_size=2, max_size=30)


def one_by_one(numbers: list[int], heldout: list[bool] | None, data: Data) -> tuple[list[int], list[int], list[int]]:
    """Both sides and what is a copy, decided for one image after the other."""
    train, held, copies = list[int](), list[int](), list[int]()
    for index in np.random.default_rng(0).permutation(len(numbers)).tolist():
        own = None if heldout is None else heldout[index]
        if (len(train) == data.train_images and not own) or numbers[index] == DAMAGED:
            continue
        if own is None and numbers[index] in held[: data.holdout]:
            copies.append(index)
        elif own or (own is None and len(held) < (data.holdout or 0)):
            held.append(numbers[index])
        else:
            train.append(numbers[index])
    return train, held, copies


@given(st.data())
def test_the_split_is_that_of_one_image_after_the_other(draw: st.DataObject) -> None:
    numbers = draw.draw(st.lists(st.integers(0, 9), min_size=3, max_size=30))
    heldout = draw.draw(st.none() | st.lists(st.booleans(), min_size=len(numbers), max_size=len(numbers)))
    holdout = None if heldout else draw.draw(st.integers(1, len(numbers) - 1))
    available = len(numbers) - (sum(heldout) if heldout else holdout or 0)
    wanted = draw.draw(st.none() | st.integers(1, available)) if available else None
    data = settings("image_folder", holdout=holdout, train_images=wanted)
    raw = raw_of(numbers, heldout or None)
    train, held, copies = one_by_one(numbers, heldout or None, data)
    assert sides(raw, data) == (train, held)
    assert raw.left_out.count(COPIES) == len(copies)


@given(pictures, st.integers(1, 29), st.none() | st.integers(1, 30))
def test_no_image_is_on_both_sides_of_a_drawn_split(numbers: list[int], holdout: int, wanted: int | None) -> None:
    assume(holdout + (wanted or 1) <= len(numbers))
    raw = raw_of(numbers)
    train, heldout = sides(raw, settings("image_folder", holdout=holdout, train_images=wanted))
    assert not set(train) & set(heldout)
    assert len(set(heldout)) == len(heldout) == min(holdout, len(set(numbers)))
    if wanted is None:
        assert len(train) + len(heldout) + raw.left_out.count(COPIES) == len(numbers)
        assert set(train) | set(heldout) == set(numbers)
        kept = [n for n in numbers if n not in heldout]
        assert sorted(train) == sorted(kept)  # copies within the training set are the user's


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=30))
def test_a_published_split_is_kept_and_its_duplicates_are_counted(images: list[tuple[int, bool]]) -> None:
    numbers, heldout = [number for number, _ in images], [side for _, side in images]
    raw = raw_of(numbers, heldout)
    train, held = sides(raw, settings("image_folder"))
    assert sorted(train) == sorted(number for number, side in images if not side)
    assert sorted(held) == sorted(number for number, side in images if side)
    assert not raw.left_out


@given(pictures, pictures)
def test_duplicates_are_counted(train: list[int], heldout: list[int]) -> None:
    digests = (b"".join(pixel_digest(bytes([n])) for n in side) for side in (train, heldout))
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
