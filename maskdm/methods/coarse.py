"""Coarse tokens: a lower resolution, or larger patches, for a whole phase or for the noisy images alone.

Where the noise hides the details, few tokens say as much as many (PPFlow: arXiv 2506.23543). The noisy image and what
is to be predicted are averaged in the same way: the time step then means the same before and after.
"""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor

from maskdm.config.masks import Mask
from maskdm.config.method import Group, allot
from maskdm.methods.method import Losses, Method, View, Weights
from maskdm.networks.network import Transformer
from maskdm.networks.patches import patchify, unpatchify


class Coarse(Method):
    """One token for each square of `factor` x `factor` of them."""

    name: Literal["coarse"]
    takes_mask: ClassVar[bool] = False
    kind: Literal["resolution", "patch"]  # the square's pixels are averaged; or all are kept, with weights of their own
    factor: Annotated[int, Field(ge=2)]  # tokens a side that become one
    above: Annotated[float, Field(ge=0, lt=1)] = 0.0  # optional: images of less noise (a quantile) keep all tokens

    @property
    def needs_blocks(self) -> bool:
        """Larger patches have an embedding of their own before the first block."""
        return self.kind == "patch"

    def groups(self, batch_size: int, mask: Mask | None) -> tuple[Group, ...]:
        """The images of much noise, and the others."""
        if not self.above:
            return (Group(batch_size, factor=self.factor),)
        coarse, fine = allot([1 - self.above, self.above], batch_size)
        return (
            Group(coarse, noise=(self.above, 1.0), weight=1 - self.above, factor=self.factor),
            Group(fine, noise=(0.0, self.above), weight=self.above),
        )

    def weights(self, network: Transformer) -> dict[str, Tensor]:
        """Of larger patches the embedding and the head: they begin as the network's own for the mean of a square."""
        if self.kind == "resolution":
            return {}
        squares = self.factor**2
        return {
            "embed_weight": network.patch_embed.weight.detach().repeat(1, squares) / squares,
            "embed_bias": network.patch_embed.bias.detach(),
            "head_weight": network.head.weight.detach().repeat(squares, 1),
            "head_bias": network.head.bias.detach().repeat(squares),
        }

    def unused(self, network: Transformer) -> list[Tensor]:
        """The network's own embedding and head, if all patches are larger."""
        if self.kind == "resolution" or self.above:
            return []
        return [*network.patch_embed.parameters(), *network.head.parameters()]

    def carry_over(self, network: Transformer, weights: Weights) -> None:
        """Fold embedding and head back to one token, if all patches were larger: `weights` in reverse."""
        if self.kind == "resolution" or self.above:
            return
        squares = self.factor**2
        with torch.no_grad():
            network.patch_embed.weight.copy_(rearrange(weights["embed_weight"], "d (s i) -> s d i", s=squares).sum(0))
            network.patch_embed.bias.copy_(weights["embed_bias"])
            network.head.weight.copy_(rearrange(weights["head_weight"], "(s o) d -> s o d", s=squares).mean(0))
            network.head.bias.copy_(rearrange(weights["head_bias"], "(s o) -> s o", s=squares).mean(0))

    def losses(self, network: Transformer, weights: Weights, view: View) -> Losses:
        """Of the coarse tokens, where the group has such."""
        if view.group.factor > 1:
            view = averaged(view, network) if self.kind == "resolution" else _joined(view, network)
        return super().losses(network, weights, view)

    def predict(self, network: Transformer, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """For the tokens of the view."""
        if view.group.factor == 1 or self.kind == "resolution":
            return network(view.x_t, view.t, None, view.labels), None
        tokens = F.linear(view.x_t, weights["embed_weight"], weights["embed_bias"])
        start = network.begin(tokens + network.places(None, tokens.shape[1]), view.t, view.labels)
        features = network.features(network.run(start, 0, network.depth))
        return F.linear(features, weights["head_weight"], weights["head_bias"]), None


def averaged(view: View, network: Transformer) -> View:
    """The view at a lower resolution: the mean over squares of `view.group.factor` pixels a side."""

    def pooled(tokens: Tensor) -> Tensor:
        images = unpatchify(tokens, network.patch_size, network.grid)
        return patchify(F.avg_pool2d(images, view.group.factor), network.patch_size)

    return replace(view, x_t=pooled(view.x_t), target=pooled(view.target))


def _joined(view: View, network: Transformer) -> View:
    """The view with the tokens of each square behind one another: `[b, S / factor**2, factor**2 * token_dim]`."""
    factor, columns = view.group.factor, network.grid[1] // view.group.factor

    def joined(tokens: Tensor) -> Tensor:
        return rearrange(tokens, "b (h p w q) d -> b (h w) (p q d)", p=factor, q=factor, w=columns)

    return replace(view, x_t=joined(view.x_t), target=joined(view.target))
