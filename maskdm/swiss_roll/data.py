"""The paper's Figure 1: a distribution in the plane whose two coordinates are two tokens, and a distance to it."""

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import model_validator
from scipy.stats import wasserstein_distance
from torch import Tensor

from maskdm.config.params import Sampling
from maskdm.config.reading import load_block
from maskdm.config.recipe import Handover, Optimisation, Recipe
from maskdm.config.schema import Positive, Schema

ANGLES = (1.5 * torch.pi, 4.5 * torch.pi)  # radians at the inner and at the outer end: scikit-learn's Swiss roll
DIRECTIONS = 32  # of the lines that a distance projects on


# --- settings -----------------------------------------------------------------------------------------------


class ConstantRate(Optimisation):
    """An optimisation for samples that are looked at along the way: at each look the learning rate is the same."""

    decay: ClassVar[float] = 0.0  # type: ignore[misc]  # no key of the file
    hflip: ClassVar[float] = 0.0  # type: ignore[misc]  # points of the plane are not mirrored
    min_snr_gamma: ClassVar[None] = None  # type: ignore[misc]  # all time steps weigh the same
    label_dropout: ClassVar[float] = 0.0  # type: ignore[misc]  # points have no classes


class RollRecipe(Recipe):
    """What the network predicts and how it is optimised, in all phases of both arms."""

    handover: ClassVar[Handover] = "weights"  # type: ignore[misc]  # what is looked at before the first pair
    optimisation: ConstantRate


class SwissRoll(Schema):
    """The block `swiss_roll` of `study/params.yaml`."""

    seeds: Positive  # how many; they count from 0
    embed_dim: Positive
    depth: Positive
    num_heads: Positive
    recipe: RollRecipe
    batch_size: Positive  # points a step, in all phases
    pretrain_steps: Positive  # on single coordinates
    finetune_steps: tuple[int, ...]  # on pairs: those after which samples are drawn; the first is 0
    samples: Positive  # points a look
    sampling: Sampling

    @model_validator(mode="after")
    def _looks_ascend(self) -> Self:
        looks = self.finetune_steps
        if looks[:1] != (0,) or len(looks) < 2 or list(looks) != sorted(set(looks)):
            raise ValueError(f"finetune_steps={list(looks)}; allowed: two or more ascending steps, the first 0")
        return self

    @model_validator(mode="after")
    def _unguided(self) -> Self:
        if self.sampling.guidance_scale != 1:
            raise ValueError(
                f"sampling.guidance_scale={self.sampling.guidance_scale:g}; allowed: 1, there are no classes"
            )
        return self

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        if self.depth % 2 == 0:
            raise ValueError(f"depth={self.depth}; allowed: an odd number")
        if self.embed_dim % (2 * self.num_heads):
            raise ValueError(f"embed_dim={self.embed_dim}; allowed: an even multiple of num_heads={self.num_heads}")
        return self

    @model_validator(mode="after")
    def _sampler_fits(self) -> Self:
        self.sampling.check_objective(self.recipe.objective)
        return self

    def flat(self) -> dict[str, Any]:
        """All settings for a fingerprint."""
        return self.model_dump(exclude={"recipe"}) | {"recipe": self.recipe.flat()}


def load_settings(path: Path) -> SwissRoll:
    """Read and check the block `swiss_roll` of the file `path`.

    Raises:
        MaskDMError: the file is missing, is not YAML, or the block breaks the schema.
    """
    return load_block(SwissRoll, "swiss_roll", path)


# --- the distribution ---------------------------------------------------------------------------------------


def roll(angles: Tensor) -> Tensor:
    """Points (x, y) of the spiral at `angles` in radians: `[n]` -> `[n, 2]`, in [-1, 1]."""
    return torch.stack([angles.cos(), angles.sin()], dim=1) * (angles / ANGLES[1])[:, None]


def even_points(count: int) -> Tensor:
    """`[count, 2]` at evenly spaced angles: the roll's distribution without the chance of a draw, and its curve."""
    return roll(ANGLES[0] + (ANGLES[1] - ANGLES[0]) * (torch.arange(count) + 0.5) / count)


def draw_points(count: int, generator: torch.Generator) -> Tensor:
    """`[count, 2]`: points at uniform angles, without noise across the curve."""
    return roll(ANGLES[0] + (ANGLES[1] - ANGLES[0]) * torch.rand(count, generator=generator))


def sliced_wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """The mean 1-Wasserstein distance of two sets of points, `[n, 2]` and `[m, 2]`, projected on lines (Rabin 2011).

    The directions are fixed and evenly spaced, so that a distance is as exact as its points and the same every time.
    """
    angles = np.arange(DIRECTIONS) * np.pi / DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return float(
        np.mean([wasserstein_distance(*pair) for pair in zip((a @ directions).T, (b @ directions).T, strict=True)])
    )
