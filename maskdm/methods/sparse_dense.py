"""SPRINT: the middle blocks see few tokens, the last ones all, fused with those of the first blocks (arXiv 2510.21986).

The fusion is the network's own long skip connection, so that only a mask token is added. A network without long skips
adds the mask token to what the first blocks made of a removed token.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from maskdm.config.schema import Fraction
from maskdm.methods.method import DetourMethod, View, Weights
from maskdm.networks.network import Stream, Transformer


class SparseDense(DetourMethod):
    """A mask token stands for the removed tokens behind the middle blocks; the loss is that of all tokens."""

    name: Literal["sparse_dense"]
    path_drop: Fraction = 0.0  # optional: of how many images the mask token replaces all that the middle blocks say
    by_chance: ClassVar[bool] = True

    def weights(self, network: Transformer) -> dict[str, Tensor]:
        """The mask token."""
        return {"mask_token": network.pos_embed.new_zeros(network.pos_embed.shape[1])}

    def rejoined(self, network: Transformer, weights: Weights, view: View, whole: Stream, inner: Stream) -> Stream:
        """The mask token for the removed ones, and for all of an image whose path is dropped."""
        fill = weights["mask_token"].expand(network.num_tokens, -1)
        if not network.has_long_skips:
            fill = whole.tokens + fill
        back = whole.rejoin(inner, view.kept, fill)
        if self.path_drop and view.chance is not None:
            dropped = (view.chance < self.path_drop)[:, None, None]
            back = back.with_tokens(torch.where(dropped, fill.to(back.x.dtype), back.tokens))
        return back
