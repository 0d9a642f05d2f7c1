"""Images as data URIs, small enough for one file that opens from disk."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from maskdm.reporting.figures import tile

BUDGET = 3_500_000  # bytes of all grids together, as they stand in the page: it has at most 6 MB
STRIP_PIXELS = 96  # at most, a side of an image in a strip
LOSSLESS_PIXELS = 32  # so small an image would show what lossy coding does to it

K = TypeVar("K")


@dataclass(frozen=True)
class Size:
    """How the images of a grid are shown."""

    across: int  # images a row, and rows
    pixels: int  # at most, a side of an image
    quality: int  # of WebP


# The best first: what a comparison of many arms, seeds and snapshots has room for comes later.
SIZES = (Size(8, 64, 85), Size(6, 64, 80), Size(6, 48, 70), Size(4, 48, 70), Size(4, 32, 60), Size(3, 32, 50))


def grids(samples: Mapping[K, np.ndarray]) -> dict[K, str]:
    """Each key's first images as a square grid: the best of `SIZES` with which all fit into `BUDGET`.

    Args:
        samples: key -> uint8 [images, C, H, W].

    Returns:
        Key -> data URI. Of too many grids even for the last of `SIZES` the first ones.
    """
    for size in SIZES:
        drawn = {key: grid(images, size) for key, images in samples.items()}
        if sum(map(len, drawn.values())) <= BUDGET:
            return drawn
    kept, spent = {}, 0
    for key, uri in drawn.items():
        spent += len(uri)
        if spent <= BUDGET:
            kept[key] = uri
    return kept


def grid(images: np.ndarray, size: Size) -> str:
    """The first images, uint8 [images, C, H, W], as a square."""
    return _uri(_tiled(images[: size.across**2], size.across, size.pixels), size.quality)


def strip(images: np.ndarray) -> str:
    """Images uint8 [images, C, H, W] in a row."""
    lossless = images.shape[-1] <= LOSSLESS_PIXELS
    return _uri(_tiled(images, len(images), STRIP_PIXELS), quality=90, lossless=lossless)


def _tiled(images: np.ndarray, columns: int, pixels: int) -> np.ndarray:
    """One picture uint8 [height, width, 4]; the lines between the images are transparent, on whatever page."""
    colour = np.repeat(images, 3, axis=1) if images.shape[1] == 1 else images
    opaque = np.concatenate([colour, np.full_like(colour[:, :1], 255)], axis=1)
    return tile(_shrunk(opaque, pixels), columns, line=0)


def _shrunk(images: np.ndarray, pixels: int) -> np.ndarray:
    if images.shape[-1] <= pixels:
        return images
    smaller = [
        Image.fromarray(image.transpose(1, 2, 0)).resize((pixels, pixels), Image.Resampling.LANCZOS) for image in images
    ]
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in smaller])


def _uri(picture: np.ndarray, quality: int, lossless: bool = False) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="WEBP", quality=quality, lossless=lossless)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
