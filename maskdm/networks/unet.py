"""The convolutional network of DDPM (Ho et al. 2020), diffusers' `UNet2DModel`, on a whole image or on one crop of it.

A convolution needs neighbours: it cannot run on scattered tokens. As in Patch Diffusion (Wang et al. 2023,
arXiv 2304.12526) a crop carries two more channels, that tell each pixel where in the whole image it stands.
"""

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from maskdm.networks.network import Network
from maskdm.networks.patches import patchify, unpatchify


class UNet(Network):
    """Levels of residual blocks, each at half the resolution of the one before, and back.

    Args:
        image_size: pixels `(height, width)`.
        patch_size: pixels a side of a token: the unit in which crops are given.
        in_channels: channels of the image.
        block_out_channels: channels of each level, the finest first; multiples of 4.
        layers_per_block: residual blocks of a level.
        attention_levels: levels with self-attention, counted from 0; the middle has it as well, if any level has.
        num_classes: labels that may condition the prediction; None: unconditional.

    Raises:
        ValueError: a size does not divide another, or there is no such level.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,  # by name only: diffusers' `from_config` forgets what was given by position
        image_size: tuple[int, int],
        patch_size: int,
        in_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        attention_levels: Sequence[int],
        num_classes: int | None = None,
    ) -> None:
        from diffusers import UNet2DModel  # here: runs of other networks need not wait a second for it

        super().__init__()
        levels = range(len(block_out_channels))
        self.factor = 2 ** (len(levels) - 1)  # between the resolutions of the first level and the last
        if image_size[0] % self.factor or image_size[1] % self.factor:
            raise ValueError(f"image_size={tuple(image_size)}; allowed: multiples of {self.factor}")
        if any(channels % 4 for channels in block_out_channels):
            raise ValueError(f"block_out_channels={list(block_out_channels)}; allowed: multiples of 4")
        if not set(attention_levels) <= set(levels):
            raise ValueError(f"attention_levels={list(attention_levels)}; allowed: {list(levels)}")
        self._set_up(image_size, patch_size, in_channels, num_classes)
        kinds = ["Attn" if level in attention_levels else "" for level in levels]
        self.unet = UNet2DModel(
            in_channels=in_channels + 2,  # and the two coordinates
            out_channels=in_channels,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            add_attention=bool(attention_levels),
            attention_head_dim=None,  # one head, as in DDPM
            norm_num_groups=math.gcd(32, *(channels // 4 for channels in block_out_channels)),  # of 4 channels or more
            num_class_embeds=None if num_classes is None else num_classes + 1,
        )

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        ids_keep: Tensor | None = None,
        labels: Tensor | None = None,
        positions: bool = True,
    ) -> Tensor:
        """Predict for a whole image, or for one square crop, row by row. As in `Network`.

        Raises:
            ValueError: the tokens are no such crop, or its side is no multiple of `factor`.
        """
        self._check_labels(labels)
        grid = self._check_crop(x_t.shape[1], ids_keep)
        images = unpatchify(x_t, self.patch_size, grid)
        # Of a batch of any size in an exported graph: `len` would be a constant there.
        untold = images.new_zeros(images.shape[0], 2, *images.shape[2:])
        coordinates = self._coordinates(images, ids_keep) if positions else untold
        prediction = self.unet(torch.cat([images, coordinates], dim=1), t, class_labels=labels, return_dict=False)[0]
        return patchify(prediction, self.patch_size)

    def matrices(self) -> list[Tensor]:
        """Those of the attention. The kernels of convolutions are no matrices."""
        from diffusers.models.attention_processor import Attention

        attentions = [module for module in self.unet.modules() if isinstance(module, Attention)]
        return [m.weight for attention in attentions for m in attention.modules() if isinstance(m, nn.Linear)]

    def position_weights(self) -> list[Tensor]:
        """None: the coordinates enter through a part of a kernel."""
        return []

    def _check_crop(self, count: int, ids_keep: Tensor | None) -> tuple[int, int]:
        """Rows and columns of the `count` visible tokens."""
        side = math.isqrt(count)
        grid = self.grid if count == self.num_tokens else (side, side)
        if count != grid[0] * grid[1] or any(n * self.patch_size % self.factor for n in grid):
            raise ValueError(f"{count} tokens; allowed: a square, with a side of a multiple of {self.factor} pixels")
        # Looked at where that costs no wait. The settings of a comparison allow no other masks than crops.
        if ids_keep is not None and ids_keep.device.type == "cpu":
            rows, columns = (torch.arange(n) for n in grid)
            crop = (rows[:, None] * self.grid[1] + columns).flatten()
            inside = (ids_keep[:, 0] % self.grid[1] + grid[1] <= self.grid[1]).all()
            if not inside or not torch.equal(ids_keep - ids_keep[:, :1], crop.expand_as(ids_keep)):
                raise ValueError("ids_keep; allowed: one square crop, row by row: a convolution needs neighbours")
        return grid

    def _coordinates(self, images: Tensor, ids_keep: Tensor | None) -> Tensor:
        """Row and column of each pixel, from -1 to 1 over the whole image: `[B, 2, h, w]`, as large as `images`."""
        batch, _, height, width = images.shape
        if ids_keep is None:  # all of the image, which may have a lower resolution: the middles of its pixels
            middles = (
                _middles(n, self.patch_size * whole, images.device)
                for n, whole in zip((height, width), self.grid, strict=True)
            )
            return torch.stack(torch.meshgrid(*middles, indexing="ij")).expand(batch, -1, -1, -1).to(images)
        corner = ids_keep[:, 0]
        top, left = self.patch_size * (corner // self.grid[1]), self.patch_size * (corner % self.grid[1])
        rows = _places(top, height, self.patch_size * self.grid[0])[:, :, None].expand(-1, -1, width)
        columns = _places(left, width, self.patch_size * self.grid[1])[:, None, :].expand(-1, height, -1)
        return torch.stack([rows, columns], dim=1).to(images.dtype)


def _middles(count: int, whole: int, device: torch.device) -> Tensor:
    """Where the middles of `count` equal parts lie, if -1 and 1 are the first and last of `whole` pixels: `[count]`."""
    size = whole / count
    return 2 * (size * torch.arange(count, device=device) + (size - 1) / 2) / max(1, whole - 1) - 1


def _places(first: Tensor, count: int, whole: int) -> Tensor:
    """Where `count` pixels from `first` `[B]` on lie, if -1 and 1 are the first and last of `whole`: `[B, count]`."""
    pixels = first[:, None] + torch.arange(count, device=first.device)
    return 2 * pixels / max(1, whole - 1) - 1
