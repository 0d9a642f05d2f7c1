"""The covariance of the tokens of a data set, and the errors of the best linear denoiser that follow from it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from sklearn.covariance import oas
from torch import Tensor

from maskdm.networks.patches import patchify, unpatchify
from maskdm.runtime.errors import MaskDMError
from maskdm.training.views import to_unit_range

IMAGES = 12_000  # of which the covariance is taken, at most
DIMS = 2048  # rows of the covariance, at most: its eigenvalues then take seconds
KNOWN = 8  # components of a token, in a window of the image
PART = 2**25  # numbers of the images that are turned into tokens at a time
HELD = 2**29  # bytes of all windows, at most


@dataclass(frozen=True)
class TokenCovariance:
    """The covariance of the tokens of an image, or of a window of it, as far as tokens tell of each other.

    Each token is turned into principal components, which are the same for all tokens. The first ones have a covariance
    between all tokens. The others have a variance alone: each is denoised by itself, with a mask as without.
    """

    images: int  # or windows of images, it was taken of
    grid: tuple[int, int]  # tokens of the window
    image_grid: tuple[int, int]  # tokens of the image; as many as `grid` if the window is the whole image
    covariance: Tensor  # of the first k components, float64 `[tokens * k, tokens * k]`
    rest: Tensor  # variances of the other ones, float64 `[tokens, others]`
    axes: Tensor  # the components, the first ones first: float64 `[token_dim, token_dim]`, a column each

    @classmethod
    def of(cls, images: np.ndarray, patch_size: int, dims: int = DIMS, side: int | None = None) -> "TokenCovariance":
        """Of images, uint8 `[n, C, H, W]`; with as many components of a token as `dims` rows allow.

        A few images tell little of many pixels: their covariance is shrunk towards that of white noise, by as much as
        is best for normal images (Chen et al. 2010, "OAS").

        Args:
            images: any prefix of them is a fair sample.
            patch_size: pixels a side of a token.
            dims: rows of the covariance, at most.
            side: tokens a side of a window. Windows are taken at random places, as if all places were alike. None: the
                whole image, or a window with `KNOWN` components of each token if `dims` rows are too few for it.

        Raises:
            MaskDMError: there are fewer than two images.
        """
        if len(images) < 2:
            raise MaskDMError(f"{len(images)} images have no covariance; allowed: at least 2")
        image_grid = images.shape[2] // patch_size, images.shape[3] // patch_size
        side = side or window_side(image_grid, dims)
        windows = images[:IMAGES] if (side, side) == image_grid else _windows(images, side * patch_size, patch_size)
        number, dim = side**2, images.shape[1] * patch_size**2
        kept = min(dim, dims // number)
        mean = sum(part.sum(dim=0) for part in _parts(windows, patch_size)) / len(windows)
        centred = partial(_parts, windows, patch_size, mean)
        own = sum(torch.einsum("bnd,bne->de", part, part) for part in centred())
        axes = torch.linalg.eigh(own).eigenvectors.flip(1)
        first, rest = [], torch.zeros(number, dim - kept, dtype=torch.float64)
        for part in centred():
            turned = part.float() @ axes.float()
            first.append(turned[..., :kept].flatten(1))
            rest += turned[..., kept:].double().square().sum(dim=0) / len(windows)
        covariance, _ = oas(torch.cat(first).numpy(), assume_centered=True)
        return cls(len(windows), (side, side), image_grid, torch.from_numpy(covariance).double(), rest, axes)

    @property
    def components(self) -> int:
        """Of each token, whose covariance with other tokens is known."""
        return len(self.covariance) // len(self.rest)

    @property
    def token_dim(self) -> int:
        """Pixels of a token, in all channels."""
        return self.components + self.rest.shape[1]

    @property
    def covered(self) -> float:
        """The share of the pixels' variance that these components have."""
        first = self.covariance.trace()
        return float(first / (first + self.rest.sum()))

    @property
    def is_window(self) -> bool:
        """Whether it is that of a part of the image."""
        return self.grid != self.image_grid

    def errors(self, snr: Tensor) -> Tensor:
        """The error in epsilon of each token with all of them visible, summed over its pixels: `[tokens, levels]`."""
        values, vectors = self._spectrum
        by_component = vectors.square() @ error(values, snr)
        return by_component.unflatten(0, (len(self.rest), -1)).sum(1) + self._rest(snr)

    def errors_alone(self, kept: Sequence[int], snr: Tensor) -> Tensor:
        """That of the tokens `kept` with no others visible, summed over all of their pixels: `[levels]`."""
        if len(kept) == len(self.rest):
            return self.errors(snr).sum(0)
        rows = self._rows(torch.tensor(kept))
        values = torch.linalg.eigvalsh(self.covariance[rows[:, None], rows]).clamp(min=0)
        return error(values, snr).sum(0) + self._rest(snr)[list(kept)].sum(0)

    def coarse_errors(self, factor: int, patch_size: int, snr: Tensor) -> tuple[Tensor, Tensor]:
        """The errors of an image whose pixels are means over squares of `factor` a side, and of the noise alike.

        Returns:
            With the coarse image alone, and with all pixels visible: sums over the coarse pixels, each `[levels]`.
        """
        ids, pooling = self._blocks(factor, patch_size)
        first, others = pooling[..., : self.components].flatten(1), pooling[..., self.components :]
        rows, (number, pixels) = self._rows(ids.flatten()), (len(ids), len(pooling))
        known = self.covariance[rows[:, None], rows].view(number, first.shape[1], number, -1)
        pooled = torch.einsum("pi,giHj,qj->gpHq", first, known, first)
        own = torch.einsum("pbc,gbc,qbc->gpq", others, self.rest[ids], others)
        pooled[torch.arange(number), :, torch.arange(number)] += own
        variances = torch.linalg.eigvalsh(pooled.reshape(number * pixels, -1)).clamp(min=0)
        # A coarse pixel has 1 / factor**2 of the variance of the noise.
        alone = error(variances, snr * factor**2).sum(0) / factor**2
        values, vectors = self._spectrum
        shares = torch.einsum("pi,gin->gpn", first, vectors[rows].view(number, -1, len(rows))).square().sum((0, 1))
        of_rest = torch.einsum("pbc,gbcl->l", others.square(), error(self.rest[ids], snr))
        return alone, shares @ error(values, snr) + of_rest

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.covariance)
        return values.clamp(min=0), vectors

    def _rows(self, tokens: Tensor) -> Tensor:
        """The rows of the covariance that are some tokens'."""
        return (tokens[:, None] * self.components + torch.arange(self.components)).flatten()

    def _rest(self, snr: Tensor) -> Tensor:
        return error(self.rest, snr).sum(1)

    def _blocks(self, factor: int, patch_size: int) -> tuple[Tensor, Tensor]:
        """The smallest squares of tokens that hold whole coarse pixels.

        Returns:
            Tokens of each square, int64 `[squares, b]`, and how components become coarse pixels, the same in all
            squares: `[pixels, b, token_dim]`.
        """
        side = math.lcm(factor, patch_size) // patch_size
        places = torch.arange(len(self.rest)).view(self.grid)
        ids = rearrange(places, "(h p) (w q) -> (h w) (p q)", p=side, q=side)
        one = torch.eye(side**2, dtype=self.axes.dtype)
        tokens = torch.einsum("ab,dc->acbd", one, self.axes).flatten(0, 1)  # each component of each token, alone
        images = unpatchify(tokens, patch_size, (side, side))
        pooled = F.avg_pool2d(images, factor).flatten(1)
        return ids, pooled.T.unflatten(1, (side**2, len(self.axes)))


def window_side(grid: tuple[int, int], dims: int = DIMS, rows: float | None = None, multiple: int = 1) -> int:
    """Tokens a side of the largest window, up to the whole grid, whose covariance has at most `dims` rows.

    Args:
        grid: rows and columns of tokens, as many of both.
        dims: rows, at most.
        rows: of each token; None: one where that is enough for the whole grid, `KNOWN` where it is not.
        multiple: of which the side is one.
    """
    if grid[0] ** 2 * (rows or 1) <= dims:
        return grid[0]
    return max(multiple, math.isqrt(int(dims / (rows or KNOWN))) // multiple * multiple)


def _windows(images: np.ndarray, size: int, patch_size: int) -> np.ndarray:
    """Squares of `size` pixels a side at random places, cut between tokens; more than one of each if images are few."""
    random = np.random.default_rng(0)
    within = (images.shape[2] // size) * (images.shape[3] // size)  # so many do not overlap
    count = min(IMAGES, HELD // (images.shape[1] * size**2))
    of_each = min(within, -(-count // len(images)))
    taken = [
        images[index, :, top : top + size, left : left + size]
        for index in range(min(len(images), count // of_each))
        for top, left in patch_size * random.integers(0, (images.shape[2] - size) // patch_size + 1, (of_each, 2))
    ]
    return np.stack(taken)


def _parts(images: np.ndarray, patch_size: int, mean: Tensor | float = 0.0) -> Iterator[Tensor]:
    """The tokens of a few images at a time, less their mean: float64 `[b, tokens, token_dim]`."""
    size = max(1, PART // images[0].size)
    for start in range(0, len(images), size):
        yield patchify(to_unit_range(torch.tensor(images[start : start + size])), patch_size).double() - mean


def error(variances: Tensor, snr: Tensor) -> Tensor:
    """The squared error in epsilon of independent normal numbers: `[...]` at `[levels]` -> `[..., levels]`."""
    signal = variances[..., None] * snr
    return signal / (1 + signal)
