"""Tokens sized to the noise: crops where there is little of it, whole or coarse images where there is much.

What a pixel far away says about a token depends on the noise: at low noise next to nothing, at high noise a lot
(Niedoba et al. 2024, arXiv 2411.19339). So a small crop loses least where most of the held-out loss is.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from maskdm.config.masks import CropMask, Mask
from maskdm.config.method import Group, allot
from maskdm.config.schema import Positive, Schema
from maskdm.methods.coarse import averaged
from maskdm.methods.method import DroppingMethod, Losses, View, Weights
from maskdm.networks.network import Transformer


class Level(Schema):
    """A part of the noise levels, and what is seen of an image there."""

    until: Annotated[float, Field(gt=0, le=1)]  # where it ends, as a quantile of the noise levels that are drawn
    crop: Positive | None = None  # optional: tokens a side of the crop; None: the whole image
    factor: Positive = 1  # optional: pixels a side that are averaged to one, of a whole image
    rate: Annotated[float, Field(gt=0)] = 1.0  # optional: how often its images are drawn; their weight makes up for it

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.crop and self.factor > 1:
            raise ValueError(f"factor={self.factor} with crop={self.crop}; allowed: one of both")
        return self


class SizedToNoise(DroppingMethod):
    """Each image is seen as the level of its noise says; the loss is that of all noise levels."""

    name: Literal["sized_to_noise"]
    takes_mask: ClassVar[bool] = False
    levels: Annotated[tuple[Level, ...], Field(min_length=1)]  # from low noise to high

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        ends = [level.until for level in self.levels]
        if ends != sorted(set(ends)) or ends[-1] != 1:
            raise ValueError(f"levels: until={ends}; allowed: ascending, the last 1")
        return self

    def groups(self, batch_size: int, mask: Mask | None) -> tuple[Group, ...]:
        """A group for each level."""
        starts = [0.0, *(level.until for level in self.levels[:-1])]
        widths = [level.until - start for level, start in zip(self.levels, starts, strict=True)]
        counts = allot([width * level.rate for width, level in zip(widths, self.levels, strict=True)], batch_size)
        return tuple(
            Group(
                count,
                CropMask(strategy="crop", crop=level.crop) if level.crop else None,
                noise=(level.until - width, level.until),
                weight=width,
                factor=level.factor,
            )
            for count, width, level in zip(counts, widths, self.levels, strict=True)
        )

    def losses(self, network: Transformer, weights: Weights, view: View) -> Losses:
        """Of what the level shows."""
        return super().losses(network, weights, averaged(view, network) if view.group.factor > 1 else view)
