"""The networks: which one is trained, how large it is, and what it can see."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from maskdm.config.masks import CropMask, Mask
from maskdm.config.schema import Positive, Schema

Layers = Annotated[int, Field(gt=0, le=1000)]  # a plan builds them all, one by one


class _Model(Schema):
    """What the settings of all networks have in common. Its keys are those of the network's constructor."""

    patch_size: Positive  # pixels a side of a token
    class_conditional: bool  # whether the network is told the class of each image

    def sizes(self) -> dict[str, Any]:
        """The arguments of the network's constructor that do not depend on the data."""
        return self.model_dump(exclude={"name", "class_conditional"})

    def check_image(self, image_size: int) -> None:
        """Refuse images of `image_size` pixels a side that the network cannot see.

        Raises:
            ValueError: so it is.
        """
        if image_size % self.patch_size:
            raise ValueError(f"model.patch_size={self.patch_size} does not divide data.image_size={image_size}")

    def grid(self, image_size: int) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return image_size // self.patch_size, image_size // self.patch_size

    @property
    def blocks(self) -> int:
        """Blocks that may each see other tokens; 1: all of the network sees the same."""
        return 1

    def check_mask(self, mask: Mask) -> None:
        """Refuse a mask that leaves what the network cannot see: a transformer sees any tokens.

        Raises:
            ValueError: so it is.
        """


class _TransformerModel(_Model):
    embed_dim: Positive  # width
    depth: Layers  # blocks
    num_heads: Positive  # of attention

    @property
    def blocks(self) -> int:
        """As in `_Model`."""
        return self.depth

    @model_validator(mode="after")
    def _heads_are_whole(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}")
        return self

    def in_words(self) -> str:
        """For the report."""
        return f"width {self.embed_dim}, {self.depth} blocks, {self.num_heads} heads"


class UViTModel(_TransformerModel):
    """The U-ViT. `small` of the paper is (512, 13, 8), `base` is (768, 13, 12), both with patch 4."""

    name: Literal["uvit"] = "uvit"  # optional

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        if self.depth % 2 == 0:
            raise ValueError(f"depth={self.depth}; allowed: an odd number (in-blocks, one mid block, out-blocks)")
        if self.embed_dim % (2 * self.num_heads):
            raise ValueError(f"embed_dim={self.embed_dim}; allowed: an even multiple of num_heads={self.num_heads}")
        return self

    def in_words(self) -> str:
        """For the report."""
        return f"U-ViT, {super().in_words()}"


class DiTModel(_TransformerModel):
    """The DiT: `S` of its paper is (384, 12, 6), `B` is (768, 12, 12)."""

    # No default: defaults are left out of a trial's identity, which would be that of a U-ViT.
    name: Literal["dit"]

    def in_words(self) -> str:
        """For the report."""
        return f"DiT, {super().in_words()}"


class UNetModel(_Model):
    """The convolutional U-Net of DDPM: 35.7 M parameters with [128, 256, 256, 256], 2 layers and attention at [1]."""

    name: Literal["unet"]
    block_out_channels: Annotated[tuple[Positive, ...], Field(min_length=1)]  # of each level, the finest first
    layers_per_block: Layers  # residual layers of each level
    attention_levels: tuple[Annotated[int, Field(ge=0)], ...]  # those with self-attention, counted from 0

    @property
    def factor(self) -> int:
        """Between the resolutions of the first level and the last."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        if any(channels % 4 for channels in self.block_out_channels):
            raise ValueError(f"block_out_channels={list(self.block_out_channels)}; allowed: multiples of 4")
        levels = list(range(len(self.block_out_channels)))
        if list(self.attention_levels) != sorted({*self.attention_levels} & {*levels}):
            raise ValueError(f"attention_levels={list(self.attention_levels)}; allowed: ascending, of {levels}")
        return self

    def in_words(self) -> str:
        """For the report."""
        channels, levels = (", ".join(map(str, each)) for each in (self.block_out_channels, self.attention_levels))
        attention = f"attention at level {levels}" if levels else "no attention"
        return f"U-Net, {channels} channels, {self.layers_per_block} blocks a level, {attention}"

    def check_image(self, image_size: int) -> None:
        """As in `_Model`."""
        super().check_image(image_size)
        if image_size % self.factor:
            raise ValueError(
                f"data.image_size={image_size}; allowed: a multiple of {self.factor} pixels, as "
                f"model.block_out_channels has {len(self.block_out_channels)} levels"
            )

    def check_mask(self, mask: Mask) -> None:
        """As in `_Model`: a convolution needs neighbours."""
        if not isinstance(mask, CropMask):
            raise ValueError(
                f"mask.strategy={mask.strategy} with model.name=unet; allowed: crop, as a convolution needs a whole "
                "image or a crop"
            )
        if mask.crop * self.patch_size % self.factor:
            raise ValueError(
                f"mask.crop={mask.crop} is {mask.crop * self.patch_size} pixels a side; allowed: a multiple of "
                f"{self.factor} pixels, as model.block_out_channels has {len(self.block_out_channels)} levels"
            )


def _named(settings: Any) -> Any:
    """A block without a name is a U-ViT's, as it was before there were others."""
    return {"name": "uvit", **settings} if isinstance(settings, dict) else settings


Model = Annotated[
    Annotated[UViTModel | DiTModel | UNetModel, Field(discriminator="name")],
    BeforeValidator(_named),
]
