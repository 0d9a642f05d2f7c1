"""Deferred masking: a mixer sees all tokens before most of them are removed (Sehwag et al. 2024, arXiv 2407.15811).

There the mixer is a network of its own. Here the first blocks are the mixer, so that nothing is added.
"""

from typing import Literal

from torch import Tensor

from maskdm.config.schema import Positive
from maskdm.methods.method import PartlyDenseMethod, View, Weights
from maskdm.networks.network import Transformer


class Defer(PartlyDenseMethod):
    """The first blocks see all tokens, the others the kept ones; the loss is that of the kept ones."""

    name: Literal["defer"]
    mixer: Positive  # blocks that see all tokens

    @property
    def dense_blocks(self) -> int:
        """The mixer's."""
        return self.mixer

    def predict(self, network: Transformer, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """For the kept tokens."""
        mixed = network.run(network.embed(view.x_t, view.t, labels=view.labels), 0, self.mixer)
        kept = network.run(mixed.select(view.kept), self.mixer, network.depth)
        return network.predict(kept), view.kept
