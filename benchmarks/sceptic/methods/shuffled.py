"""A fault on purpose: the kept tokens of an image are told each other's places."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from maskdm.methods.method import DroppingMethod, View, Weights
from maskdm.networks.network import Transformer


class Shuffled(DroppingMethod):
    """Drops as the paper does, and shuffles the places anew in every step."""

    name: Literal["shuffled"]
    by_chance: ClassVar[bool] = True

    def predict(self, network: Transformer, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """For the visible tokens."""
        assert view.chance is not None
        number = torch.arange(1, view.kept.shape[1] + 1, device=view.kept.device)
        order = (7919.0 * view.chance.double()[:, None] * number).frac().argsort(dim=1)  # as good as random
        return network(view.x_t, view.t, view.kept.gather(1, order), view.labels), None
