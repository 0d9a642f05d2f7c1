"""A fault on purpose: where FLOPs are counted the network sees the kept tokens, and where it trains it sees all."""

from typing import Literal

from torch import Tensor

from maskdm.methods.method import Method, View, Weights
from maskdm.networks.network import Transformer
from maskdm.networks.patches import gather_tokens


class Miscounted(Method):
    """Ordinary training at the price of dropping."""

    name: Literal["miscounted"]

    def predict(self, network: Transformer, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """For the tokens that were seen."""
        if view.x_t.is_meta:
            return network(gather_tokens(view.x_t, view.kept), view.t, view.kept, view.labels), view.kept
        return network(view.x_t, view.t, labels=view.labels), None
