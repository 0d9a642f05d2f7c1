"""Damaged and hostile image files: each becomes pixels, or is left out by name and reason."""

import io
import zlib
from functools import cache
from random import Random

import numpy as np
from PIL import Image

from maskdm.datasets.encoded import decode
from maskdm.datasets.images import is_image
from maskdm.datasets.raw import UnreadableImageError
from tests.fuzz.harness import amounts, changed_bytes, fuzz, randoms, require_line

SIDE = 8


@cache
def examples_of_formats() -> list[bytes]:
    """A small image in every format and mode that Pillow writes; those with many images in one file, too."""
    Image.init()
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 4), np.uint8)
    found = []
    for suffix, kind in sorted(Image.registered_extensions().items()):
        if not is_image(f"a{suffix}") or kind not in Image.SAVE:
            continue
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"):
            file = io.BytesIO()
            try:
                Image.fromarray(noise).convert("RGB" if mode == "CMYK" else "RGBA").convert(mode).save(file, kind)
            except (OSError, ValueError, KeyError):  # the format has no such mode
                continue
            found.append(file.getvalue())
    first, *others = (Image.fromarray(noise[..., :3] // n) for n in (1, 2, 3))
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        file = io.BytesIO()
        first.save(file, kind, save_all=True, append_images=others)
        found.append(file.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        file = io.BytesIO()
        first.save(file, kind, exif=exif)
        found.append(file.getvalue())
    return found


def answer_to(content: bytes) -> str:
    try:
        pixels = decode(lambda: content, "a.png", SIDE, 3)
    except UnreadableImageError as error:
        said = error.reason
        pixels = None
    if pixels is None:
        require_line(said)
        assert "0x" not in said, "the address of an object differs from run to run"
        return "left out"
    assert pixels.shape == (3, SIDE, SIDE)
    assert pixels.dtype == np.uint8
    return "decoded"


@amounts(2500, few=100)
def test_images(examples: int) -> None:
    usual = examples_of_formats()
    assert len(usual) > 30

    def check(random: Random) -> str:
        content = random.choice(usual)
        if random.random() < 0.1:  # one format's beginning with another one's end
            cut = random.randrange(min(200, len(content)))
            return answer_to(content[:cut] + random.choice(usual)[cut:])
        return answer_to(changed_bytes(content, random))

    fuzz(examples, "images", randoms(), check)


def png(width: int, height: int, content: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def test_a_small_file_of_very_many_pixels_is_left_out() -> None:
    for width, height in ((100_000, 100_000), (2**31 - 1, 1), (1, 2**31 - 1), (0, 1), (15_000, 15_000)):
        assert answer_to(png(width, height, zlib.compress(bytes(10_000)))) == "left out"
