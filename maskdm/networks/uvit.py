"""The U-ViT (Bao et al. 2022, "All are Worth Words") on a set of patch tokens, complete or not.

It differs from the original in what MaskDM changed: no final 3x3 convolution, which cannot run on a sparse set of
tokens. It takes the tokens that a mask kept, already gathered, so that removed tokens cost nothing; each keeps the
position embedding of its place. There is no mask token and no decoder: kept tokens in, their predictions out.
"""

from dataclasses import replace

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from maskdm.networks.layers import Attention, sinusoidal_embedding
from maskdm.networks.network import Stream, Transformer


class Block(nn.Module):
    """A pre-norm transformer block; with `skip`, it first merges the tokens of its partner on the way down."""

    def __init__(self, dim: int, num_heads: int, skip: bool = False) -> None:
        super().__init__()
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias=False)  # as in the authors' settings
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """`[B, L, dim]` (and the partner's `[B, L, dim]`) -> `[B, L, dim]`."""
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(Transformer):
    """Blocks in pairs around a middle one; a pair has a long skip connection.

    Args:
        image_size: pixels `(height, width)`.
        patch_size: pixels a side of a token.
        in_channels: channels of the image.
        embed_dim, depth, num_heads: width, number of blocks (odd) and attention heads.
        num_classes: labels that may condition the prediction through one more token; None: unconditional.

    Raises:
        ValueError: `depth` is even, or a size does not divide another.
    """

    has_long_skips = True

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
        self._set_up(image_size, patch_size, in_channels, num_classes)
        self.depth = depth
        self.num_extra_tokens = 1 if num_classes is None else 2  # time, and the label

        self.patch_embed = nn.Linear(self.token_dim, embed_dim)
        self.label_embed = None if num_classes is None else nn.Embedding(num_classes + 1, embed_dim)
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

    def begin(self, tokens: Tensor, t: Tensor, labels: Tensor | None) -> Stream:
        """The time token and, with classes, the label token stand before those of the image. As in `Transformer`."""
        return Stream(torch.cat([self._extra_tokens(t, labels).to(tokens.dtype), tokens], dim=1), self.num_extra_tokens)

    def run(self, stream: Stream, start: int, stop: int) -> Stream:
        """In-blocks leave their tokens, out-blocks take them up, the last first. As in `Transformer`."""
        x, skips = stream.x, list(stream.skips)
        for index in range(start, stop):
            if index < len(self.in_blocks):
                x = self.in_blocks[index](x)
                skips.append(x)
            elif index == len(self.in_blocks):
                x = self.mid_block(x)
            else:
                x = self.out_blocks[index - len(self.in_blocks) - 1](x, skips.pop())
        return replace(stream, x=x, skips=tuple(skips))

    def features(self, stream: Stream) -> Tensor:
        """As in `Transformer`."""
        return self.norm(stream.tokens)

    def parts(self) -> list[nn.Module]:
        """The blocks. As in `Network`."""
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    def matrices(self) -> list[Tensor]:
        """Those of the blocks."""
        return [m.weight for block in self.parts() for m in block.modules() if isinstance(m, nn.Linear)]

    def _extra_tokens(self, t: Tensor, labels: Tensor | None) -> Tensor:
        """The time token and, with classes, the label token: `[B, num_extra_tokens, embed_dim]`."""
        self._check_labels(labels)
        extra = [sinusoidal_embedding(t, self.pos_embed.shape[1])]
        if self.label_embed is not None:
            extra.append(self.label_embed(labels))
        return torch.stack(extra, dim=1) + self.extra_pos_embed


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
