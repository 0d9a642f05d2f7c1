"""The DiT (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers") on a set of patch tokens.

Time and label are no tokens here: they condition every block by adaLN-zero. Two things differ from the original: the
position embeddings are learned, as the U-ViT's are, and the head predicts no variance. Kept tokens come gathered, as in
the U-ViT, so that removed ones cost nothing.
"""

from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from maskdm.networks.layers import Attention, sinusoidal_embedding
from maskdm.networks.network import Stream, Transformer

TIME_FEATURES = 256  # of the sinusoidal embedding, as published, whatever the width


class Block(nn.Module):
    """A transformer block whose shifts, scales and gates come from the conditioning (adaLN-zero).

    The gates begin at 0, so that the block begins as the identity.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = _norm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias=True)
        self.norm2 = _norm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`[B, L, dim]` and the conditioning `[B, dim]` -> `[B, L, dim]`."""
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = _chunks(self.modulation, context, 6)
        x = x + gate_attn * self.attn(self.norm1(x) * (1 + scale_attn) + shift_attn)
        return x + gate_mlp * self.mlp(self.norm2(x) * (1 + scale_mlp) + shift_mlp)


class DiT(Transformer):
    """Blocks one behind the other, without long skip connections.

    Args:
        image_size: pixels `(height, width)`.
        patch_size: pixels a side of a token.
        in_channels: channels of the image.
        embed_dim, depth, num_heads: width, number of blocks and attention heads.
        num_classes: labels that may condition the prediction; None: unconditional.

    Raises:
        ValueError: a size does not divide another.
    """

    has_long_skips = False

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
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim}; allowed: a multiple of num_heads={num_heads}")
        self._set_up(image_size, patch_size, in_channels, num_classes)
        self.depth = depth

        self.patch_embed = nn.Linear(self.token_dim, embed_dim)
        self.pos_embed = nn.Parameter(torch.empty(self.num_tokens, embed_dim))
        self.time_embed = nn.Sequential(nn.Linear(TIME_FEATURES, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim))
        self.label_embed = None if num_classes is None else nn.Embedding(num_classes + 1, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = _norm(embed_dim)
        self.modulation = nn.Linear(embed_dim, 2 * embed_dim)
        self.head = nn.Linear(embed_dim, self.token_dim)
        self._init_weights()

    def begin(self, tokens: Tensor, t: Tensor, labels: Tensor | None) -> Stream:
        """The tokens of the image, and time and label as the context of all blocks. As in `Transformer`."""
        self._check_labels(labels)
        context = self.time_embed(sinusoidal_embedding(t, TIME_FEATURES))
        if self.label_embed is not None:
            context = context + self.label_embed(labels)
        return Stream(tokens, num_extra_tokens=0, context=context)

    def run(self, stream: Stream, start: int, stop: int) -> Stream:
        """As in `Transformer`."""
        x = stream.x
        for block in self.blocks[start:stop]:
            x = block(x, stream.context)
        return replace(stream, x=x)

    def features(self, stream: Stream) -> Tensor:
        """As in `Transformer`."""
        shift, scale = _chunks(self.modulation, cast(Tensor, stream.context), 2)
        return self.norm(stream.tokens) * (1 + scale) + shift

    def parts(self) -> list[nn.Module]:
        """The blocks. As in `Network`."""
        return list(self.blocks)

    def matrices(self) -> list[Tensor]:
        """Those that the tokens pass in the blocks.

        Not those of the modulations: each image passes them once, so that Muon's products would cost far more than
        their own.
        """
        layers = ((name, m) for name, m in self.blocks.named_modules() if isinstance(m, nn.Linear))
        return [layer.weight for name, layer in layers if not name.endswith("modulation")]

    def _init_weights(self) -> None:
        """As published."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
            elif isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
                if name.endswith(("modulation", "head")):
                    nn.init.zeros_(layer.weight)
                elif name.startswith("time_embed"):
                    nn.init.normal_(layer.weight, std=0.02)
                else:
                    nn.init.xavier_uniform_(layer.weight)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)


def _norm(dim: int) -> nn.LayerNorm:
    """Without weights: scale and shift come from the conditioning."""
    return nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)


def _chunks(modulation: nn.Linear, context: Tensor, count: int) -> tuple[Tensor, ...]:
    """`count` vectors for each image, made from the conditioning `[B, dim]`: `[B, 1, dim]` each."""
    return modulation(F.silu(context))[:, None].chunk(count, dim=-1)
