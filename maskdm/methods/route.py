"""TREAD: some tokens take a route around the middle blocks and come back (Krause et al. 2025, arXiv 2501.04765)."""

from typing import Literal

from torch import Tensor

from maskdm.methods.method import DetourMethod, View, Weights
from maskdm.networks.network import Transformer


class Route(DetourMethod):
    """Removed tokens miss the middle blocks and come back as they were; the loss is that of all tokens."""

    name: Literal["route"]

    def predict(self, network: Transformer, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """For all tokens."""
        whole = network.run(network.embed(view.x_t, view.t, labels=view.labels), 0, self.first)
        inner = network.run(whole.select(view.kept), self.first, network.depth - self.last)
        back = whole.rejoin(inner, view.kept, fill=whole.tokens)
        return network.predict(network.run(back, network.depth - self.last, network.depth)), None
