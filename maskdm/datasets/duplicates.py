"""Images with the same pixels, told by a digest of them: a few bytes an image, since a data set may have millions."""

from hashlib import blake2b

import numpy as np

SIZE = 16  # bytes of a digest: among a million images the chance that two different ones share one is 1e-27


def pixel_digest(pixels: bytes) -> bytes:
    """The same for all copies of an image, and for nothing else."""
    return blake2b(pixels, digest_size=SIZE).digest()


def count_duplicates(train: bytes, heldout: bytes) -> dict[str, int]:
    """Count copies among training and held-out images.

    Args:
        train: the digests of all training images, one after the other; at least one.
        heldout: those of all held-out images.

    Returns:
        `within_train` and `within_heldout`: images that repeat an earlier one of their side; `train_and_heldout`:
        training images with the pixels of a held-out one.
    """
    first, second = (np.frombuffer(digests, f"S{SIZE}") for digests in (train, heldout))
    return {
        "within_train": len(first) - len(np.unique(first)),
        "within_heldout": len(second) - len(np.unique(second)),
        "train_and_heldout": int(np.isin(first, second).sum()),
    }
