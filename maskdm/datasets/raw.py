"""What every loader hands over: images that are read one at a time, so that a large set never sits in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maskdm.config.params import Data
from maskdm.datasets.left_out import LeftOut
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import expanded


class UnreadableImageError(Exception):
    """One image that cannot be decoded: it is reported and left out, the others go on."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class RawImages:
    """A data set before the split is drawn and the array is written."""

    source: str  # where the images came from, for a reader
    files: dict[str, str]  # file -> SHA-256
    count: int
    read: Callable[[int], np.ndarray]  # index -> uint8 [C, H, W]; raises UnreadableImageError
    call: Callable[[int], Callable[[], np.ndarray]] | None = None  # `read`, as other processes can call it
    labels: np.ndarray | None = None  # int64 [count]
    class_names: list[str] | None = None
    heldout: np.ndarray | None = None  # bool [count], the set's own split; None: it has none
    names: Sequence[str] | None = None  # of the images' files; None: they do not come one a file
    version: str = ""  # differs where files have changed and `files` is the same
    left_out: LeftOut = field(default_factory=LeftOut)  # what is no image to read; the split adds to it

    def name(self, index: int) -> str:
        """Name an image for a reader."""
        return f"image {index}" if self.names is None else self.names[index]


def raw_place(data: Data, raw: Path) -> Path:
    """Where the raw files of a data set are, or should be placed: `data.root`, or `raw/<name>`.

    Raises:
        MaskDMError: `data.root` names an environment variable or a user that does not exist.
    """
    return raw / data.name if data.root is None else expanded(data.root, "data.root")


def require_shape(data: Data, image_size: int, channels: int) -> None:
    """Refuse another size than the one this data set is prepared in.

    Raises:
        MaskDMError: `data` asks for another image size or number of channels.
    """
    for key, value, allowed in (
        ("image_size", data.image_size, image_size),
        ("channels", data.channels, channels),
    ):
        if value != allowed:
            raise MaskDMError(f"data.{key}={value} with data.name={data.name}; allowed: {allowed}")
