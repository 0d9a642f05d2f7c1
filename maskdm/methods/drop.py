"""MaskDM's own method: removed tokens cost nothing and nothing is predicted for them (PAPER, MDSM; arXiv 2306.11363)."""

from typing import Literal

from torch import Tensor

from maskdm.methods.method import Method, View, Weights
from maskdm.networks.network import Network
from maskdm.networks.patches import gather_tokens


class Drop(Method):
    """The network sees the kept tokens alone, each with its place. Without a mask it is ordinary training."""

    name: Literal["drop"]
    positions: bool = True  # optional: whether the network is told where the visible tokens stand (H of the paper)

    def visible(self, tokens: Tensor, ids_keep: Tensor | None) -> Tensor:
        """The kept ones."""
        return tokens if ids_keep is None else gather_tokens(tokens, ids_keep)

    def unused(self, network: Network) -> list[Tensor]:
        """What tells the places, if nothing does."""
        return [] if self.positions else network.position_weights()

    def predict(self, network: Network, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """For the visible tokens."""
        if self.positions:
            return network(view.x_t, view.t, view.ids_keep, view.labels), None
        return network(view.x_t, view.t, view.ids_keep, view.labels, positions=False), None
