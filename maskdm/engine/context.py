"""How much context is left where less is shown, before any training: the best linear denoiser with that against all.

Of normal images with covariance S, seen through noise at the signal-to-noise ratio s, the best denoiser is linear. Its
squared error in epsilon is s S (s S + 1)^-1: the trace over all pixels, or over some of them. With the visible tokens
alone S is their own block of it; of a coarse image it is that of the means. Images are not normal, so a network does
better than both: the ratio of the two errors orders masks, and says nothing of the size of a loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskdm.config.masks import Mask
from maskdm.config.method import Group
from maskdm.engine.token_covariance import TokenCovariance
from maskdm.methods.masks import draw_ids_keep
from maskdm.training.objective import Objective

LEVELS = 20  # quantiles of the noise levels
DRAWS = 64  # of a mask, at most
FEWEST_DRAWS = 3
WORK = 3e10  # about the multiplications that the eigenvalues of all draws of a mask may take
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

    @property
    def quantiles(self) -> Tensor:
        """Where each is among the noise levels of the training: `[levels]`, ascending."""
        return (torch.arange(len(self.snr), dtype=torch.float64) + 0.5) / len(self.snr)


@dataclass(frozen=True)
class Context:
    """The errors in epsilon of a pixel that is shown, means over the pixels and draws: each `[levels]`."""

    alone: Tensor  # with what is shown alone
    whole: Tensor  # of the same pixels, with all tokens
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


class Contexts:
    """What groups of images leave of the context; what was computed for one is kept for the next.

    Args:
        tokens: of masks.
        coarse: gives those of images of which `factor` x `factor` pixels become one.
        patch_size: pixels a side of a token.
        levels: of the noise.
    """

    def __init__(
        self, tokens: TokenCovariance, coarse: Callable[[int], TokenCovariance], patch_size: int, levels: NoiseLevels
    ) -> None:
        self.tokens, self.coarse, self.patch_size, self.levels = tokens, coarse, patch_size, levels
        self._known: dict[tuple[Mask | None, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, groups: Sequence[Group]) -> Context:
        """Of a batch that is divided so: at each noise level the mean over the groups that see it, by their weight.

        Raises:
            ValueError: a mask or a factor does not fit the grid.
        """
        alone, whole = (torch.zeros(len(self.levels.snr), dtype=torch.float64) for _ in range(2))
        for group in groups:
            start, end = group.noise
            sees = (self.levels.quantiles >= start) & (self.levels.quantiles < end)
            share = group.weight / (end - start) * sees
            own = self._errors(group)
            alone, whole = alone + share * own[0], whole + share * own[1]
        return Context(alone, whole, self.levels.weights)

    def _errors(self, group: Group) -> tuple[Tensor, Tensor]:
        """Of a pixel that the group shows, with that alone and with all tokens: each `[levels]`."""
        key = group.mask, group.factor
        if key not in self._known:
            if group.factor > 1:
                self._known[key] = self._coarse_errors(group.factor)
            elif group.mask:
                self._known[key] = mask_errors(self.tokens, group.mask, self.levels.snr)
            else:
                full = self.tokens.errors(self.levels.snr).mean(0) / self.tokens.token_dim
                self._known[key] = full, full
        return self._known[key]

    def _coarse_errors(self, factor: int) -> tuple[Tensor, Tensor]:
        tokens = self.coarse(factor)
        pixels = len(tokens.rest) * tokens.token_dim / factor**2
        alone, whole = tokens.coarse_errors(factor, self.patch_size, self.levels.snr)
        return alone / pixels, whole / pixels


def mask_errors(tokens: TokenCovariance, mask: Mask, snr: Tensor) -> tuple[Tensor, Tensor]:
    """The errors of a pixel that a mask leaves, with its tokens alone and with all: means over draws, each `[levels]`.

    Raises:
        ValueError: the mask does not fit the grid.
    """
    places = _windows(tokens, mask) if tokens.is_window else _places(tokens, mask)
    whole = tokens.errors(snr)
    alone = torch.stack([tokens.errors_alone(kept, snr) / len(kept) for kept in places])
    full = torch.stack([whole[kept].mean(0) for kept in places])
    return alone.mean(0) / tokens.token_dim, full.mean(0) / tokens.token_dim


def _places(tokens: TokenCovariance, mask: Mask) -> list[list[int]]:
    """The visible tokens of draws of a mask, as many as there is time for."""
    rows = mask.num_keep(tokens.grid) * tokens.components
    draws = int(min(DRAWS, max(FEWEST_DRAWS, WORK // rows**3)))
    ids = draw_ids_keep(mask, tokens.grid, draws, torch.Generator().manual_seed(0))
    places: list[list[int]] = torch.unique(ids.sort(dim=1).values, dim=0).tolist()
    return places  # a large crop has few places: each of them is there once


def _windows(tokens: TokenCovariance, mask: Mask) -> list[list[int]]:
    """The same within windows, each around a visible token: those that hold many of them are taken more often.

    So the mean over the windows of the mean over their visible tokens weighs each token alike.
    """
    random, work = torch.Generator().manual_seed(0), 0.0
    places: list[list[int]] = []
    for kept in draw_ids_keep(mask, tokens.image_grid, DRAWS, random):
        if len(places) >= FEWEST_DRAWS and work > WORK:
            break
        places.append(_within(kept, tokens, random))
        if len(places[-1]) < len(tokens.rest):  # what shows the whole window loses nothing, and takes no time
            work += (len(places[-1]) * tokens.components) ** 3
    return places


def _within(kept: Tensor, tokens: TokenCovariance, random: torch.Generator) -> list[int]:
    """Visible tokens of an image `[K]` as those of a window around one of them, at a random place."""
    places = torch.stack([kept // tokens.image_grid[1], kept % tokens.image_grid[1]], dim=1)
    sides, whole = torch.tensor(tokens.grid), torch.tensor(tokens.image_grid)
    chosen = places[torch.randint(len(places), (1,), generator=random)[0]]
    low, high = (chosen - sides + 1).clamp(min=0), torch.minimum(chosen, whole - sides)
    start = low + (torch.rand(2, generator=random) * (high - low + 1)).long()
    inside = places[((places >= start) & (places < start + sides)).all(dim=1)] - start
    return sorted((inside[:, 0] * tokens.grid[1] + inside[:, 1]).tolist())
