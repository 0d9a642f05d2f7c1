"""Image files as square arrays of one size: which files are images, what a transparent one shows, and the crop."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageFile, ImageOps

# What Pillow opens and is no still image of fixed pixels. PostScript and Windows metafiles are programs that draw, and
# Pillow hands the former to Ghostscript. The others are videos, or measurements that it has no decoder for.
NO_STILL_IMAGES = {"EPS", "WMF", "FLI", "MPEG", "BUFR", "GRIB", "HDF5"}
BACKGROUND = "white"  # behind transparent pixels
# Pixels of these kinds Pillow brings to 8 bits, but not the value in a PNG file that marks the transparent ones.
TO_8_BITS = {"L;2": 255 / 3, "L;4": 255 / 15, "RGB;16B": 1 / 256}


def is_image(name: str) -> bool:
    """Tell by its suffix whether a file is a still image that Pillow can open."""
    return PurePosixPath(name).suffix.lower() in _suffixes()


def square_pixels(content: bytes, image_size: int, channels: int) -> np.ndarray:
    """Decode an image file to uint8 [channels, image_size, image_size]: the largest centred square, resized.

    A transparent image is shown on white. Of a file with several images it is the first.

    Raises:
        Exception: nearly any, if the file is damaged, or no still image.
    """
    with _opened(content) as file:
        if file.format == "PNG" and "transparency" in file.info:
            _scale_transparent_value(file)
        image = ImageOps.exif_transpose(file)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range")
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    image = on_background(image).convert("L" if channels == 1 else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))  # before resizing, so that nothing beside it bleeds in
    image = image.resize((image_size, image_size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def sides(content: bytes) -> tuple[int, int]:
    """Width and height by the header of an image file, in pixels; nothing is decoded.

    Raises:
        Exception: nearly any, if the file is damaged, or no still image.
    """
    with _opened(content) as file:
        return file.size


@contextmanager
def _opened(content: bytes) -> Iterator[ImageFile.ImageFile]:
    """Pillow's view of a file, without its warnings: of half of the pixels that are an error, and of small damage.

    They name a line of Pillow's, and not the image, among thousands of which some have so many pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=_formats()) as file:
            yield file


def on_background(image: Image.Image) -> Image.Image:
    """A transparent image as a viewer shows it, in RGB; an opaque one is returned as it is.

    Pillow's own conversion drops the transparency, and shows whatever colour is hidden under it.
    """
    if not image.has_transparency_data:
        return image
    if image.mode == "La":
        image = image.convert("LA")  # Pillow converts La to nothing else
    colours = image.convert("RGBA")
    opacity = colours.getchannel("A")
    if opacity.getextrema()[0] == 255:
        return image
    shown = Image.new("RGB", image.size, BACKGROUND)
    shown.paste(colours, mask=opacity)
    return shown


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as L, or as LA if one value stands for transparent: Pillow's own conversion clips it to white."""
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    opacity = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(opacity)))


def _scale_transparent_value(file: ImageFile.ImageFile) -> None:
    scale = TO_8_BITS.get(str(file.tile[0].args))
    if scale is not None:
        value = file.info["transparency"]
        file.info["transparency"] = tuple(int(v * scale) for v in value) if file.mode == "RGB" else int(value * scale)


@cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of the formats that a file may have, whatever its suffix, in the order in which they are tried."""
    Image.preinit()  # the common ones first
    named = set(Image.registered_extensions().values())  # loads all formats; some without a suffix take any file
    return tuple(name for name in Image.OPEN if name in named - NO_STILL_IMAGES)


@cache
def _suffixes() -> frozenset[str]:
    readable = {*_formats(), "MPO"}  # which JPEG's reader opens
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable)
