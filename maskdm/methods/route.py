"""TREAD: some tokens take a route around the middle blocks and come back (Krause et al. 2025, arXiv 2501.04765)."""

from typing import Literal

from maskdm.methods.method import DetourMethod, View, Weights
from maskdm.networks.network import Stream, Transformer


class Route(DetourMethod):
    """Removed tokens miss the middle blocks and come back as they were; the loss is that of all tokens."""

    name: Literal["route"]

    def rejoined(self, network: Transformer, weights: Weights, view: View, whole: Stream, inner: Stream) -> Stream:
        """The removed ones as they were."""
        return whole.rejoin(inner, view.kept, fill=whole.tokens)
