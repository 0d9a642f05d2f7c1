"""A fault on purpose: masks are drawn, and the network sees all tokens."""

from typing import Literal

from torch import Tensor

from maskdm.config.masks import Mask
from maskdm.methods.method import Method, View, Weights
from maskdm.networks.network import Transformer


class Ignored(Method):
    """Ordinary training under another name."""

    name: Literal["ignored"]
    admitted: bool = True  # whether the settings say that all tokens are seen

    def tokens_a_block(self, mask: Mask | None, grid: tuple[int, int], depth: int) -> float:
        """All of them, or as many as the mask would leave."""
        return grid[0] * grid[1] if self.admitted else super().tokens_a_block(mask, grid, depth)

    def predict(self, network: Transformer, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """For all tokens."""
        return network(view.x_t, view.t, labels=view.labels), None
