"""The 8x8 handwritten digits that scikit-learn carries in its wheel: for smoke runs and tests, without any fetching."""

from pathlib import Path

import numpy as np

from maskdm.config.params import Data
from maskdm.datasets.raw import RawImages, require_shape
from maskdm.runtime.errors import MaskDMError


def load(data: Data, raw: Path, scratch: Path) -> RawImages:
    """1,797 grey images with labels; pixels 0 to 16 become 0 to 255.

    Raises:
        MaskDMError: `data.root` is set, or another size than 8x8 grey is asked for.
    """
    from sklearn.datasets import load_digits

    require_shape(data, 8, 1)
    if data.root is not None:
        raise MaskDMError(f"data.root={data.root} with data.name=digits; allowed: null (scikit-learn carries them)")
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return RawImages(
        source="scikit-learn's bundled digits (UCI ML, Optical Recognition of Handwritten Digits)",
        files={},
        count=len(images),
        read=images.__getitem__,
        labels=digits.target.astype(np.int64),
        class_names=[str(digit) for digit in range(10)],
    )
