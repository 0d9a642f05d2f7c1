"""How much context a mask leaves, before any training: the best linear denoiser with a mask against that without.

Of normal images with covariance S, seen through noise at the signal-to-noise ratio s, the best denoiser is linear. Its
squared error in epsilon is s S (s S + 1)^-1: the trace over all pixels, or over some of them. With the visible tokens
alone S is their own block of it. Images are not normal, so a network does better than both: the ratio of the two errors
orders masks, and says nothing of the size of a loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.covariance import oas
from torch import Tensor

from maskdm.config.masks import Mask
from maskdm.methods.masks import draw_ids_keep
from maskdm.networks.patches import patchify
from maskdm.runtime.errors import MaskDMError
from maskdm.training.objective import Objective
from maskdm.training.views import to_unit_range

IMAGES = 12_000  # of which the covariance is taken, at most
DIMS = 2048  # rows of the covariance, at most: its eigenvalues then take seconds
LEVELS = 20  # quantiles of the noise levels
DRAWS = 64  # of a mask, at most
WORK = 1e10  # about the multiplications that the eigenvalues of all draws of a mask may take
PART = 500  # images that are turned into tokens at a time
TIMES = 2**17  # that are drawn to find the quantiles


@dataclass(frozen=True)
class NoiseLevels:
    """Evenly spaced quantiles of the noise levels of a training, from low noise to high; each `[levels]`, float64."""

    snr: Tensor  # (a / b)^2
    weights: Tensor  # of the squared error in epsilon, in what the training minimises; they add up to 1

    @classmethod
    def of(cls, objective: Objective, min_snr_gamma: float | None, count: int = LEVELS) -> "NoiseLevels":
        """The centres of `count` equal parts of the times that training draws."""
        times = objective.draw_times(TIMES, torch.Generator().manual_seed(0)).double()
        quantiles = torch.quantile(times, (torch.arange(count, dtype=torch.float64) + 0.5) / count)
        mix = objective.coefficients(quantiles)
        snr = (mix.a / mix.b).double().square()
        weights = objective.weights(quantiles, min_snr_gamma).double() * (mix.determinant / mix.a).double().square()
        order = snr.argsort(descending=True)
        return cls(snr[order], (weights / weights.sum())[order])


@dataclass(frozen=True)
class TokenCovariance:
    """The covariance of the tokens of a data set, as far as tokens tell of each other.

    Each token is turned into principal components, which are the same for all tokens. The first ones have a covariance
    between all tokens. The others have a variance alone: each is denoised by itself, with a mask as without.
    """

    images: int  # it was taken of
    grid: tuple[int, int]
    covariance: Tensor  # of the first k components, float64 `[tokens * k, tokens * k]`
    rest: Tensor  # variances of the other ones, float64 `[tokens, others]`

    @classmethod
    def of(cls, images: np.ndarray, patch_size: int, dims: int = DIMS) -> "TokenCovariance":
        """Of images, uint8 `[n, C, H, W]`; with as many components of a token as `dims` rows allow.

        A few images tell little of many pixels: their covariance is shrunk towards that of white noise, by as much as
        is best for normal images (Chen et al. 2010, "OAS").

        Raises:
            MaskDMError: there are fewer than two images, or more tokens than `dims`.
        """
        grid = images.shape[2] // patch_size, images.shape[3] // patch_size
        if len(images) < 2:
            raise MaskDMError(f"{len(images)} images have no covariance; allowed: at least 2")
        number, dim = grid[0] * grid[1], images.shape[1] * patch_size**2
        kept = min(dim, dims // number)
        if not kept:
            raise MaskDMError(
                f"a grid of {grid[0]}x{grid[1]} tokens: its covariance is too large; allowed: at most {dims} tokens"
            )
        mean = sum(part.sum(dim=0) for part in _parts(images, patch_size)) / len(images)
        centred = partial(_parts, images, patch_size, mean)
        own = sum(torch.einsum("bnd,bne->de", part, part) for part in centred())
        axes = torch.linalg.eigh(own).eigenvectors.flip(1).float()
        first, rest = [], torch.zeros(number, dim - kept, dtype=torch.float64)
        for part in centred():
            turned = part.float() @ axes
            first.append(turned[..., :kept].flatten(1))
            rest += turned[..., kept:].double().square().sum(dim=0) / len(images)
        covariance, _ = oas(torch.cat(first).numpy(), assume_centered=True)
        return cls(len(images), grid, torch.from_numpy(covariance).double(), rest)

    @property
    def components(self) -> int:
        """Of each token, whose covariance with other tokens is known."""
        return len(self.covariance) // len(self.rest)

    @property
    def covered(self) -> float:
        """The share of the pixels' variance that these components have."""
        first = self.covariance.trace()
        return float(first / (first + self.rest.sum()))

    def errors(self, snr: Tensor) -> Tensor:
        """The error in epsilon of each token with all of them visible, summed over its pixels: `[tokens, levels]`."""
        values, vectors = torch.linalg.eigh(self.covariance)
        by_component = vectors.square() @ error(values.clamp(min=0), snr)
        return by_component.unflatten(0, (len(self.rest), -1)).sum(1) + self._rest(snr)

    def errors_alone(self, kept: Sequence[int], snr: Tensor) -> Tensor:
        """That of the tokens `kept` with no others visible, summed over all of their pixels: `[levels]`."""
        rows = (torch.tensor(kept)[:, None] * self.components + torch.arange(self.components)).flatten()
        values = torch.linalg.eigvalsh(self.covariance[rows[:, None], rows]).clamp(min=0)
        return error(values, snr).sum(0) + self._rest(snr)[list(kept)].sum(0)

    def _rest(self, snr: Tensor) -> Tensor:
        return error(self.rest.flatten(), snr).unflatten(0, self.rest.shape).sum(1)


def _parts(images: np.ndarray, patch_size: int, mean: Tensor | float = 0.0) -> Iterator[Tensor]:
    """The tokens of a few images at a time, less their mean: float64 `[b, tokens, token_dim]`."""
    for start in range(0, len(images), PART):
        yield patchify(to_unit_range(torch.tensor(images[start : start + PART])), patch_size).double() - mean


def error(variances: Tensor, snr: Tensor) -> Tensor:
    """The squared error in epsilon of independent normal numbers: `[n]` at `[levels]` -> `[n, levels]`."""
    signal = variances[:, None] * snr
    return signal / (1 + signal)


@dataclass(frozen=True)
class Context:
    """The errors in epsilon of a mask's visible pixels, means over the draws of the mask: each `[levels]`."""

    alone: Tensor  # with the visible tokens alone
    whole: Tensor  # on the same pixels, with all tokens
    weights: Tensor  # of the levels in training

    @property
    def by_level(self) -> Tensor:
        """Their ratio at each level, at least 1."""
        return self.alone / self.whole

    @property
    def heldout(self) -> float:
        """The ratio of their means over the levels: what it does to a loss in epsilon."""
        return float(self.alone.mean() / self.whole.mean())

    @property
    def training(self) -> float:
        """The ratio of their weighted means: what it does to the loss that training minimises."""
        return float((self.alone @ self.weights) / (self.whole @ self.weights))


def contexts(tokens: TokenCovariance, masks: Sequence[Mask], levels: NoiseLevels) -> list[Context]:
    """What each mask leaves.

    Raises:
        ValueError: a mask does not fit the grid.
    """
    whole = tokens.errors(levels.snr)
    return [_context(tokens, mask, levels, whole) for mask in masks]


def _context(tokens: TokenCovariance, mask: Mask, levels: NoiseLevels, whole: Tensor) -> Context:
    rows = mask.num_keep(tokens.grid) * tokens.components
    draws = int(min(DRAWS, max(3, WORK // rows**3)))
    ids = draw_ids_keep(mask, tokens.grid, draws, torch.Generator().manual_seed(0))
    places = torch.unique(ids.sort(dim=1).values, dim=0).tolist()  # a large crop has few places: each of them once
    alone = torch.stack([tokens.errors_alone(kept, levels.snr) for kept in places])
    full = torch.stack([whole[kept].sum(0) for kept in places])
    return Context(alone.mean(0), full.mean(0), levels.weights)
