"""What every method is made of: settings, what it shows to the network, what it adds to it, and its losses.

The training loop draws images, time steps and noise. It hands them to the method as a `View` of each group of images,
and gets the losses of the images back. `Trainee` holds what is trained: the network, and the weights a method adds.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskdm.config.comparison import Phase
from maskdm.config.method import Group, MethodSettings
from maskdm.methods.masks import draw_ids_keep
from maskdm.networks.network import Network
from maskdm.networks.patches import gather_tokens

Weights = nn.ParameterDict


@dataclass(frozen=True)
class View:
    """What a method is given of one group: `b` images of it, those of this process."""

    group: Group
    x_t: Tensor  # noisy tokens `[b, S, token_dim]`: those that `visible` chose
    t: Tensor  # what the network is told about the noise level, `[b]`
    target: Tensor  # what it should predict for each token of `x_t`
    ids_keep: Tensor | None  # places of the kept tokens, int64 `[b, K]`; None: all are kept
    labels: Tensor | None  # classes `[b]`
    chance: Tensor | None  # uniform numbers `[b]`, if the method decides by chance


@dataclass(frozen=True)
class Losses:
    """Of each image, `[b]` in float32."""

    denoising: Tensor  # mean squared error over the predicted tokens; the loop weighs it by the noise level
    auxiliary: Tensor | None = None  # added as it is


class Method(MethodSettings):
    """A method: settings (`MethodSettings`) with what they mean. It has no state; `weights` are what it adds."""

    by_chance: ClassVar[bool] = False  # whether it wants `View.chance`

    def weights(self, network: Network) -> dict[str, Tensor]:
        """What is trained beside the network in this phase: names, and what they begin with. They come to nothing
        when the phase ends, unless the next one has the same method."""
        return {}

    def unused(self, network: Network) -> list[Tensor]:
        """The weights of the network that take no part."""
        return []

    def carry_over(self, network: Network, weights: Weights) -> None:
        """Bring what `weights` have learnt into `network`, at the end of the phase."""

    def visible(self, tokens: Tensor, ids_keep: Tensor | None) -> Tensor:
        """The tokens `[b, S, token_dim]` that get noise, of all of them `[b, N, token_dim]`; any dtype."""
        return tokens

    def losses(self, network: Network, weights: Weights, view: View) -> Losses:
        """How far the prediction is from the target."""
        prediction, places = self.predict(network, weights, view)
        target = view.target if places is None else gather_tokens(view.target, places)
        return Losses(token_error(prediction, target))

    @abstractmethod
    def predict(self, network: Network, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """What the network says for tokens of `view.x_t`, and which of them, int64 `[b, P]`; None: all of them."""


def token_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image, `[b]` in float32, of tokens `[b, S, token_dim]`."""
    return F.mse_loss(prediction.float(), target, reduction="none").mean(dim=(1, 2))


class Trainee(nn.Module):
    """What a phase trains. Its forward pass gives the losses of all groups, so that DDP sees one pass a step.

    Args:
        network: trained in place.
        method: of the phase.
    """

    def __init__(self, network: Network, method: Method) -> None:
        super().__init__()
        self.network, self.method = network, method
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(start.clone()) for name, start in method.weights(network).items()}
        )
        for weight in method.unused(network):
            weight.requires_grad_(False)  # DDP waits for the gradient of every weight that has one

    def forward(self, views: Sequence[View]) -> list[Losses]:
        """The losses of each group's images."""
        return [self.method.losses(self.network, self.weights, view) for view in views]


def draw_group(group: Group, method: Method, grid: tuple[int, int], random: torch.Generator) -> "Draw":
    """What is drawn for all images of a group before any of them is looked at."""
    ids_keep = draw_ids_keep(group.mask, grid, group.images, random) if group.mask else None
    chance = torch.rand(group.images, generator=random, device=random.device) if method.by_chance else None
    return Draw(ids_keep, chance)


@dataclass(frozen=True)
class Draw:
    """The random part of a view, for all images of a group: as in `View`."""

    ids_keep: Tensor | None
    chance: Tensor | None


def method_of(phase: Phase) -> Method:
    """The method of a phase: the one it names, or else the paper's."""
    from maskdm.methods.drop import Drop

    if phase.method is None:
        return Drop(name="drop", positions=phase.positions)
    assert isinstance(phase.method, Method)
    return phase.method


def allot(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total`, as near to `shares` of it as can be, and none of them 0.

    Raises:
        ValueError: `total` is less than the number of shares.
    """
    if total < len(shares):
        raise ValueError(f"batch_size={total}; allowed: at least {len(shares)}, one image for each group of the method")
    wanted = [share / sum(shares) * total for share in shares]
    counts = [max(1, int(number)) for number in wanted]
    while sum(counts) < total:  # the largest remainders first
        counts[max(range(len(counts)), key=lambda i: wanted[i] - counts[i])] += 1
    while sum(counts) > total:
        counts[max(range(len(counts)), key=lambda i: (counts[i] > 1, counts[i] - wanted[i]))] -= 1
    return counts
