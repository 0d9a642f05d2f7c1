"""What every method is made of: settings, what it shows to the network, what it adds to it, and its losses.

The training loop draws images, time steps and noise. It hands them to the method as a `View` of each group of images,
and gets the losses of the images back. `Trainee` holds what is trained: the network, and the weights a method adds.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskdm.config.masks import Mask
from maskdm.config.method import Group, MethodSettings
from maskdm.config.schema import Positive
from maskdm.methods.masks import draw_ids_keep
from maskdm.networks.network import Network, Stream, Transformer
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
    positions: bool  # whether the network is told the places; False without a method alone

    @property
    def kept(self) -> Tensor:
        """`ids_keep`, where the method takes a mask."""
        assert self.ids_keep is not None
        return self.ids_keep


@dataclass(frozen=True)
class Losses:
    """Of each image, `[b]` in float32."""

    denoising: Tensor  # mean squared error over the predicted tokens; the loop weighs it by the noise level
    auxiliary: Tensor | None = None  # added as it is

    @property
    def total(self) -> Tensor:
        """Without weights, `[b]`."""
        return self.denoising if self.auxiliary is None else self.denoising + self.auxiliary


class Method(MethodSettings):
    """A method: settings (`MethodSettings`) with what they mean. It has no state; `weights` are what it adds."""

    by_chance: ClassVar[bool] = False  # whether it wants `View.chance`

    def weights(self, network: Transformer) -> dict[str, Tensor]:
        """What is trained beside the network in this phase: names, and what they begin with, on its device.

        They end with the phase, unless the next one has the same method.
        """
        return {}

    def unused(self, network: Transformer) -> list[Tensor]:
        """The weights of the network that take no part."""
        return []

    def carry_over(self, network: Transformer, weights: Weights) -> None:
        """Bring what `weights` have learnt into `network`, at the end of the phase."""

    def visible(self, tokens: Tensor, ids_keep: Tensor | None) -> Tensor:
        """The tokens `[b, S, token_dim]` that get noise, of all of them `[b, N, token_dim]`; any dtype."""
        return tokens

    def losses(self, network: Transformer, weights: Weights, view: View) -> Losses:
        """How far the prediction is from the target."""
        prediction, places = self.predict(network, weights, view)
        target = view.target if places is None else gather_tokens(view.target, places)
        return Losses(token_error(prediction, target))

    @abstractmethod
    def predict(self, network: Transformer, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """What the network says for tokens of `view.x_t`, and which of them, int64 `[b, P]`; None: all of them."""


class DroppingMethod(Method):
    """One that shows the kept tokens alone to the network."""

    def visible(self, tokens: Tensor, ids_keep: Tensor | None) -> Tensor:
        """The kept ones."""
        return tokens if ids_keep is None else gather_tokens(tokens, ids_keep)

    def predict(self, network: Transformer, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """For the visible tokens."""
        return network(view.x_t, view.t, view.ids_keep, view.labels, positions=view.positions), None


class PartlyDenseMethod(Method):
    """One whose mask holds for some blocks, while the others see all tokens."""

    @property
    def needs_blocks(self) -> bool:
        """They are told apart."""
        return True

    @property
    @abstractmethod
    def dense_blocks(self) -> int:
        """How many blocks see all tokens."""

    def tokens_a_block(self, mask: Mask | None, grid: tuple[int, int], depth: int) -> float:
        """All of them in the dense blocks, the kept ones in the others."""
        whole = grid[0] * grid[1]
        kept = mask.num_keep(grid) if mask else whole
        return (self.dense_blocks * whole + (depth - self.dense_blocks) * kept) / depth

    def check(self, depth: int) -> None:
        """The dense blocks leave another one."""
        if self.dense_blocks >= depth:
            raise ValueError(
                f"method: {self.dense_blocks} blocks would see all tokens; allowed: 1 to {depth - 1} of the network's "
                f"{depth}"
            )


class DetourMethod(PartlyDenseMethod):
    """One in which removed tokens miss the middle blocks."""

    first: Positive  # blocks that see all tokens before
    last: Positive  # and after

    @property
    def dense_blocks(self) -> int:
        """Before and after."""
        return self.first + self.last

    def predict(self, network: Transformer, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """For all tokens."""
        whole = network.run(network.embed(view.x_t, view.t, labels=view.labels), 0, self.first)
        inner = network.run(whole.select(view.kept), self.first, network.depth - self.last)
        back = self.rejoined(network, weights, view, whole, inner)
        return network.predict(network.run(back, network.depth - self.last, network.depth)), None

    @abstractmethod
    def rejoined(self, network: Transformer, weights: Weights, view: View, whole: Stream, inner: Stream) -> Stream:
        """All tokens before the last blocks, of those before the detour (`whole`) and the kept ones behind it."""


def token_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image, `[b]` in float32, of tokens `[b, S, token_dim]`."""
    return F.mse_loss(prediction.float(), target, reduction="none").mean(dim=(1, 2))


class Trainee(nn.Module):
    """What a phase trains. Its forward pass gives the losses of all groups, so that DDP sees one pass a step.

    Args:
        network: trained in place.
        method: of the phase.
        positions: whether the network is told the places of its tokens.
    """

    def __init__(self, network: Network, method: Method, positions: bool = True) -> None:
        super().__init__()
        self.network, self.method = network, method
        start = method.weights(cast(Transformer, network))
        self.weights = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in start.items()})
        for weight in [*method.unused(cast(Transformer, network)), *([] if positions else network.position_weights())]:
            weight.requires_grad_(False)  # DDP waits for the gradient of every weight that has one

    def forward(self, views: Sequence[View]) -> list[Losses]:
        """The losses of each group's images."""
        network = cast(Transformer, self.network)  # a method that needs blocks is refused with other networks
        return [self.method.losses(network, self.weights, view) for view in views]


@dataclass(frozen=True)
class Draw:
    """The random part of a view, for all images of a group: as in `View`."""

    ids_keep: Tensor | None
    chance: Tensor | None


def draw(group: Group, method: Method, grid: tuple[int, int], random: torch.Generator) -> Draw:
    """What is drawn before any image is looked at."""
    ids_keep = draw_ids_keep(group.mask, grid, group.images, random) if group.mask else None
    chance = torch.rand(group.images, generator=random, device=random.device) if method.by_chance else None
    return Draw(ids_keep, chance)
