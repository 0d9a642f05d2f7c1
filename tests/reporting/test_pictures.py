"""Images in the page."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from maskdm.reporting import pictures
from maskdm.reporting.pictures import SIZES, Size


def images(count: int = 64, channels: int = 1, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


def decoded(uri: str) -> np.ndarray:
    head, _, content = uri.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA"))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_strip_of_small_images_is_exact_and_its_lines_are_transparent(channels: int) -> None:
    given = images(4, channels)
    picture = decoded(pictures.strip(given))
    assert picture.shape == (16, 4 * 17 - 1, 4)
    assert np.array_equal(picture[:, 17:33, :channels], given[1].transpose(1, 2, 0))
    assert (picture[:, 16, 3] == 0).all()
    assert (picture[:, 17:33, 3] == 255).all()


def test_a_grid_holds_the_first_images_no_larger_than_its_size_says() -> None:
    assert decoded(pictures.grid(images(side=16), Size(3, 64, 90))).shape[:2] == (50, 50)
    assert decoded(pictures.grid(images(side=128), Size(3, 64, 90))).shape[:2] == (194, 194)


def test_the_best_size_with_which_all_grids_fit_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = {seed: images(side=64, channels=3) for seed in range(3)}
    lengths = [sum(len(pictures.grid(one, size)) for one in samples.values()) for size in SIZES]
    assert lengths == sorted(lengths, reverse=True)
    for size, length in zip(SIZES, lengths, strict=True):
        monkeypatch.setattr(pictures, "BUDGET", length)
        assert pictures.grids(samples) == {seed: pictures.grid(one, size) for seed, one in samples.items()}
    monkeypatch.setattr(pictures, "BUDGET", lengths[-1] - 1)
    assert list(pictures.grids(samples)) == [0, 1], "of too many the first ones"
