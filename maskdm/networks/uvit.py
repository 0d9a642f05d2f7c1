"""The U-ViT (Bao et al. 2022, "All are Worth Words") on a set of patch tokens, complete or not.

It differs from the original in what MaskDM changed: no final 3x3 convolution, which cannot run on a sparse set of
tokens. It takes the tokens that a mask kept, already gathered, so that removed tokens cost nothing; each keeps the
position embedding of its place. There is no mask token and no decoder: kept tokens in, their predictions out.
"""

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention without masking, bias-free in qkv as in the authors' settings."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, L, dim]` -> `[B, L, dim]`."""
        q, k, v = rearrange(self.qkv(x), "b l (three h d) -> three b h l d", three=3, h=self.num_heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)"))


class Block(nn.Module):
    """A pre-norm transformer block; with `skip`, it first merges the tokens of its partner on the way down."""

    def __init__(self, dim: int, num_heads: int, skip: bool = False) -> None:
        super().__init__()
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """`[B, L, dim]` (and the partner's `[B, L, dim]`) -> `[B, L, dim]`."""
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers ships no types
    """Predicts noise (or velocity) for the visible patch tokens of a noisy image.

    `save_pretrained(folder)` and `UViT.from_pretrained(folder)` write and read `config.json` and safetensors.

    Args:
        image_size: pixels `(height, width)`.
        patch_size: pixels a side of a token.
        in_channels: channels of the image.
        embed_dim, depth, num_heads: width, number of blocks (odd) and attention heads.
        num_classes: labels that may condition the prediction through one more token; None: unconditional.

    Raises:
        ValueError: `depth` is even, or a size does not divide another.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,  # by name only: diffusers' `from_config` forgets what was given by position
        image_size: tuple[int, int],
        patch_size: int,
        in_channels: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if depth % 2 == 0:
            raise ValueError(f"depth={depth}; allowed: an odd number")
        if embed_dim % (2 * num_heads):
            raise ValueError(f"embed_dim={embed_dim}; allowed: an even multiple of num_heads={num_heads}")
        if image_size[0] % patch_size or image_size[1] % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide image_size={tuple(image_size)}")
        self.patch_size = patch_size
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.num_tokens = self.grid[0] * self.grid[1]
        self.token_dim = patch_size**2 * in_channels
        self.num_classes = num_classes
        self.num_extra_tokens = 1 if num_classes is None else 2  # time, and the label

        self.patch_embed = nn.Linear(self.token_dim, embed_dim)
        self.label_embed = None if num_classes is None else nn.Embedding(num_classes, embed_dim)
        self.pos_embed = nn.Parameter(torch.empty(self.num_tokens, embed_dim))
        self.extra_pos_embed = nn.Parameter(torch.empty(self.num_extra_tokens, embed_dim))
        self.in_blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth // 2))
        self.mid_block = Block(embed_dim, num_heads)
        self.out_blocks = nn.ModuleList(Block(embed_dim, num_heads, skip=True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, self.token_dim)
        self.apply(_init_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.extra_pos_embed, std=0.02)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        ids_keep: Tensor | None = None,
        labels: Tensor | None = None,
        positions: bool = True,
    ) -> Tensor:
        """Predict for the visible tokens only.

        Args:
            x_t: noisy tokens `[B, S, token_dim]`, those at `ids_keep`, or all `num_tokens` of them.
            t: times `[B]`, numbers of the size of time steps (0 to 1000, say), whole or not.
            ids_keep: place of each token on the grid, int64 `[B, S]`; None: all tokens, in order.
            labels: class of each image, int64 `[B]`; required exactly if the network has classes.
            positions: whether to tell the tokens their places; without, `ids_keep` is not read.

        Returns:
            The prediction `[B, S, token_dim]`, in the order of `x_t`.
        """
        tokens = self.patch_embed(x_t)
        if positions:
            tokens = tokens + (self.pos_embed if ids_keep is None else F.embedding(ids_keep, self.pos_embed))
        x = torch.cat([self._extra_tokens(t, labels).to(tokens.dtype), tokens], dim=1)
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        return self.head(self.norm(x[:, self.num_extra_tokens :]))

    def _extra_tokens(self, t: Tensor, labels: Tensor | None) -> Tensor:
        """The time token and, with classes, the label token: `[B, num_extra_tokens, embed_dim]`."""
        if (labels is None) != (self.label_embed is None):
            raise ValueError("labels are required by a network with classes, and by no other")
        extra = [sinusoidal_embedding(t, self.pos_embed.shape[1])]
        if self.label_embed is not None:
            extra.append(self.label_embed(labels))
        return torch.stack(extra, dim=1) + self.extra_pos_embed


def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Time steps `[B]` -> cosines and sines at geometrically spaced periods, `[B, dim]` (Vaswani et al. 2017)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
