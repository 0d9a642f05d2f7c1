"""Arrays of samples as pictures: a grid, single files, an animation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

GRID_SIDE = 8  # samples a side of the grid that is kept
SHOWN_SIZE = 64  # pixels a side that a small image is enlarged to, about
EMPTY = 255  # grey level of places of a grid without an image
FRAME_MS, LAST_FRAME_MS = 80, 1500

AnimationFormat = Literal["gif", "webp"]


def as_grid(images: np.ndarray, columns: int = GRID_SIDE) -> Image.Image:
    """uint8 `[n, C, H, W]` -> one picture, `columns` images a row, enlarged without smoothing to about 64 pixels."""
    columns = min(columns, len(images))
    missing = -len(images) % columns
    filled = np.concatenate([images, np.full((missing, *images.shape[1:]), EMPTY, np.uint8)])
    rows = filled.reshape(-1, columns, *images.shape[1:])  # r, n, c, h, w
    grid = rows.transpose(0, 3, 1, 4, 2).reshape(len(rows) * images.shape[2], columns * images.shape[3], -1)
    zoom = max(1, SHOWN_SIZE // images.shape[-1])
    return _picture(grid.repeat(zoom, axis=0).repeat(zoom, axis=1))


def save_singles(images: np.ndarray, folder: Path) -> list[Path]:
    """Write each of uint8 `[n, C, H, W]` as `folder/<number>.png`, in its own size; returns the files."""
    folder.mkdir()
    paths = [folder / f"{number:05d}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        _picture(image.transpose(1, 2, 0)).save(path)
    return paths


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Write frames as an animation without end, whose format is the suffix of `path`; the last frame stays a while."""
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    lossless = path.suffix == ".webp"  # a keyword that GIF does not read
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, lossless=lossless)


def _picture(pixels: np.ndarray) -> Image.Image:
    """uint8 `[H, W, C]` as a picture, grey or RGB."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
