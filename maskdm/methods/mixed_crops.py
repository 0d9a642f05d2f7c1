"""Patch Diffusion: crops and whole images in each batch (Wang et al. 2023, arXiv 2304.12526).

Their loss is a sum over pixels, so that a crop weighs less than a whole image. Here every image weighs the same.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from maskdm.config.masks import CropMask, Mask
from maskdm.config.method import Group, allot
from maskdm.config.schema import Positive, Schema
from maskdm.methods.method import DroppingMethod


class Crops(Schema):
    """Some images of a batch."""

    crop: Positive  # tokens a side
    share: Annotated[float, Field(gt=0, lt=1)]  # of the images


class MixedCrops(DroppingMethod):
    """Some images are cropped, each to one of a few sizes; the others are whole."""

    name: Literal["mixed_crops"]
    takes_mask: ClassVar[bool] = False
    crops: Annotated[tuple[Crops, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _some_are_whole(self) -> Self:
        if (total := sum(part.share for part in self.crops)) >= 1 - 1e-9:
            raise ValueError(f"crops: the shares add up to {total:g}; allowed: less than 1, the others are whole")
        return self

    def groups(self, batch_size: int, mask: Mask | None) -> tuple[Group, ...]:
        """The crops of each size, then the whole images."""
        shares = [part.share for part in self.crops]
        counts = allot([*shares, 1 - sum(shares)], batch_size)
        masks = [*(CropMask(strategy="crop", crop=part.crop) for part in self.crops), None]
        return tuple(Group(count, mask, weight=count / batch_size) for count, mask in zip(counts, masks, strict=True))
