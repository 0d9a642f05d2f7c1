"""A fault on purpose: every image is told where the tokens of another image stand."""

from typing import Literal

from torch import Tensor

from maskdm.methods.method import DroppingMethod, View, Weights
from maskdm.networks.network import Transformer


class Elsewhere(DroppingMethod):
    """Drops as the paper does; the crop of an image is said to be where that of the next one is."""

    name: Literal["elsewhere"]

    def predict(self, network: Transformer, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """For the visible tokens."""
        return network(view.x_t, view.t, view.kept.roll(1, dims=0), view.labels), None
