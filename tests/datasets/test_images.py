"""Image files as pixels: what a transparent image shows, which suffixes are images, and what is never opened."""

import io
import struct
import subprocess
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, UnidentifiedImageError, features

from maskdm.datasets.images import is_image, on_background, square_pixels

RNG = np.random.default_rng(0)
RED, ON_WHITE = (200, 30, 30), (241, 199, 199)  # and what is left of it on white if it is a quarter opaque


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(256, size=shape, dtype=np.uint8)


def hidden_noise(channels: int) -> np.ndarray:
    """Noise that is wholly transparent, around a black square that is not."""
    pixels = noise(16, 16, channels + 1)
    pixels[..., -1] = 0
    pixels[4:12, 4:12] = [0] * channels + [255]
    return pixels


def with_transparent_value(pixels: np.ndarray, value: Any) -> bytes:
    return encoded(Image.fromarray(pixels), transparency=value)


def palette_image() -> bytes:
    """Half of its 256 random colours are transparent; black, the first, is not."""
    indices = np.tile(np.arange(128, 256, dtype=np.uint8), 2).reshape(16, 16)
    indices[4:12, 4:12] = 0
    image = Image.fromarray(indices, "P")
    image.putpalette(bytes([0, 0, 0, *RNG.integers(256, size=255 * 3).tolist()]))
    return encoded(image, transparency=bytes([255] * 128 + [0] * 128))


def square_of(inside: int, outside: Any, dtype: type = np.uint8) -> np.ndarray:
    pixels: np.ndarray = np.broadcast_to(np.array(outside, dtype), (16, 16, *np.shape(outside))).copy()
    pixels[4:12, 4:12] = inside
    return pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(hidden_noise(3))),
        encoded(Image.fromarray(hidden_noise(1), "LA")),
        encoded(Image.fromarray(hidden_noise(3)), "WEBP", lossless=True, exact=True),
        encoded(Image.fromarray(hidden_noise(3)), "TIFF"),
        encoded(Image.fromarray(hidden_noise(3)), "TGA"),
        palette_image(),
        encoded(Image.fromarray(square_of(0, 77)), "GIF", transparency=77),
        with_transparent_value(square_of(0, 77), 77),
        with_transparent_value(square_of(0, (7, 70, 77)), (7, 70, 77)),
        with_transparent_value(square_of(0, 777, np.uint16), 777),
    ],
    ids=["RGBA", "LA", "WebP", "TIFF", "TGA", "P", "GIF", "L-value", "RGB-value", "16-bit-value"],
)
def test_what_is_transparent_is_white_whatever_colour_it_hides(content: bytes, channels: int) -> None:
    expected = np.full((channels, 16, 16), 255, np.uint8)
    expected[:, 4:12, 4:12] = 0
    np.testing.assert_array_equal(square_pixels(content, 16, channels), expected)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_a_transparent_avif_is_white_where_it_is_transparent() -> None:
    pixels = square_pixels(encoded(Image.fromarray(hidden_noise(3)), "AVIF", quality=100), 16, 3)
    assert pixels[:, :3].min() >= 250


def png(depth: int, color_type: int, pixel: bytes, transparent: bytes) -> bytes:
    """One pixel of a kind that Pillow does not write."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 1, 1, depth, color_type, 0, 0, 0),
        b"tRNS": transparent,
        b"IDAT": zlib.compress(b"\0" + pixel),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


@pytest.mark.parametrize(
    ("depth", "color_type", "pixel", "value", "other"),
    [
        (1, 0, b"\x00", [0], [1]),
        (2, 0, b"\x40", [1], [2]),
        (4, 0, b"\x30", [3], [4]),
        (16, 0, b"\x30\x01", [0x3001], [0x3002]),
        (16, 2, b"\x01\x07\x02\x07\x03\x07", [0x107, 0x207, 0x307], [1, 2, 3]),
    ],
)
def test_the_transparent_value_of_a_png_is_found_at_every_depth(
    depth: int, color_type: int, pixel: bytes, value: list[int], other: list[int]
) -> None:
    transparent, opaque = (
        square_pixels(png(depth, color_type, pixel, struct.pack(f">{len(v)}H", *v)), 1, 3) for v in (value, other)
    )
    assert (transparent == 255).all()
    assert opaque.max() < 255


@pytest.mark.parametrize(
    ("mode", "color", "shown"),
    [
        ("RGBA", (*RED, 64), ON_WHITE),
        ("RGBa", (50, 8, 8, 64), ON_WHITE),
        ("LA", (30, 64), (199, 199, 199)),
        ("La", (8, 64), (199, 199, 199)),
        ("PA", (1, 64), ON_WHITE),
    ],
)
def test_a_quarter_opaque_colour_is_a_quarter_of_it_on_white(
    mode: str, color: tuple[int, ...], shown: tuple[int, ...]
) -> None:
    image = Image.new(mode, (2, 2), color)
    if mode == "PA":
        image.putpalette([0, 0, 0, *RED])
    pixels = np.asarray(on_background(image).convert("RGB"), dtype=int)
    np.testing.assert_allclose(pixels[0, 0], shown, atol=2)  # premultiplied colours are rounded to a 64th here


@pytest.mark.parametrize("target", ["L", "RGB"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "RGBX", "RGBA", "RGBa", "LA", "PA"])
def test_an_opaque_image_is_left_as_it_is(mode: str, target: str) -> None:
    image = Image.fromarray(noise(9, 9, 3)).convert(mode)
    np.testing.assert_array_equal(np.asarray(on_background(image).convert(target)), np.asarray(image.convert(target)))


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "A.JPG", "a.avif", "a.jp2", "a.tga", "a.qoi", "b/a.webp", "a.mpo"])
def test_what_pillow_opens_is_an_image(name: str) -> None:
    if name.endswith("avif") and not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    assert is_image(name)


@pytest.mark.parametrize(
    "name", ["a.eps", "a.ps", "a.pdf", "a.wmf", "a.mpg", "a.flc", "a.h5", "a.txt", "png", "a.jpg/b"]
)
def test_what_is_no_still_image_is_none(name: str) -> None:
    assert not is_image(name)


def test_postscript_is_not_run_whatever_its_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was started")

    for function in ("Popen", "call", "check_call", "check_output", "run"):
        monkeypatch.setattr(subprocess, function, fail)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(io.BytesIO(content)) as file:
        assert file.format == "EPS"  # Pillow itself would run it
    with pytest.raises(UnidentifiedImageError):
        square_pixels(content, 8, 3)


def large_metadata() -> dict[str, dict[str, Any]]:
    """Of 3 MiB each, which compress to nearly nothing."""
    packed, international = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    packed.add_text("parameters", "x" * (3 << 20), zip=True)
    international.add_itxt("workflow", "x" * (3 << 20), zip=True)
    return {"profile": {"icc_profile": bytes(3 << 20)}, "zTXt": {"pnginfo": packed}, "iTXt": {"pnginfo": international}}


@pytest.mark.parametrize("kind", large_metadata())
def test_an_image_with_a_large_profile_or_text_is_read(kind: str) -> None:
    content = encoded(Image.new("RGB", (16, 16), RED), **large_metadata()[kind])
    assert square_pixels(content, 16, 3)[:, 8, 8].tolist() == list(RED)


@pytest.mark.slow
def test_a_bomb_of_text_is_none() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "x" * (65 << 20), zip=True)
    with pytest.raises(ValueError, match="too large"):
        square_pixels(encoded(Image.new("RGB", (16, 16)), pnginfo=text), 16, 3)


def test_damaged_exif_data_is_not_spoken_of() -> None:
    entries = struct.pack(">HHIIHHIHHI", 0x011A, 5, 1, 0xFFFF, 0x0112, 3, 1, 1, 0, 0)  # the first points beyond the end
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\2" + entries
    content = encoded(Image.new("RGB", (16, 16), RED), "JPEG", exif=exif)
    with pytest.warns(UserWarning, match="Truncated"):
        Image.open(io.BytesIO(content)).getexif()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert square_pixels(content, 16, 3).shape == (3, 16, 16)
