from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdm.evaluation.pictures import EMPTY, as_grid, save_animation, save_singles


def some(count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, 16, 16)).astype(np.uint8)


@pytest.mark.parametrize(("count", "channels", "mode"), [(64, 1, "L"), (64, 3, "RGB"), (20, 1, "L"), (3, 3, "RGB")])
def test_the_grid_shows_all_images_enlarged_without_smoothing(count: int, channels: int, mode: str) -> None:
    images = some(count, channels)
    grid = as_grid(images)
    assert grid.mode == mode
    across = min(count, 8)
    assert grid.size == (64 * across, 64 * -(-count // across))
    pixels = np.asarray(grid).reshape(*reversed(grid.size), channels)
    row, column = divmod(count - 1, across)
    last = pixels[64 * row :, 64 * column : 64 * (column + 1)]
    assert np.array_equal(last[::4, ::4].transpose(2, 0, 1), images[-1])
    if count % across:
        assert (pixels[-1, -1] == EMPTY).all()


def test_single_files_hold_the_pixels(tmp_path: Path) -> None:
    images = some(3, 3)
    for path, image in zip(save_singles(images, tmp_path / "images"), images, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)).transpose(2, 0, 1), image)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_has_all_frames_and_ends_with_the_last_one(tmp_path: Path, suffix: str) -> None:
    images = some(5)
    save_animation([as_grid(image[None]) for image in images], path := tmp_path / f"way.{suffix}")
    with Image.open(path) as animation:
        assert getattr(animation, "n_frames", 1) == 5
        animation.seek(4)
        assert np.array_equal(np.asarray(animation.convert("L")), np.asarray(as_grid(images[-1:])))
