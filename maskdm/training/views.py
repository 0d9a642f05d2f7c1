"""What a training step shows to the network: of each group of images the noisy tokens, and what is to be predicted.

All that is drawn is drawn for the whole batch on every process, so that together they take the step of one process.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskdm.config.method import Group
from maskdm.methods.method import Losses, View, draw
from maskdm.networks.network import Network
from maskdm.networks.patches import patchify
from maskdm.runtime.errors import MaskDMError
from maskdm.training.objective import Objective
from maskdm.training.plan import PhasePlan


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1, the range that the diffusion runs in."""
    return pixels.float() / 127.5 - 1


@dataclass(frozen=True)
class Part:
    """The images of a group that are this process's."""

    group: Group
    images: slice | list[int]  # which of all images of this process
    own: slice | list[int]  # which of the group


def own_parts(groups: Sequence[Group], share: slice) -> list[Part]:
    """What of each group is in the `share` of the batch. The groups are mixed evenly, so that every share has of each.

    Raises:
        MaskDMError: this process would have no image of a group.
    """
    if len(groups) == 1:
        return [Part(groups[0], slice(None), share)]
    size = sum(group.images for group in groups)
    order = sorted(
        ((2 * place + 1) / group.images, index, place)
        for index, group in enumerate(groups)
        for place in range(group.images)
    )
    parts = []
    for index, group in enumerate(groups):
        mine = [(row, place) for row, (_, of, place) in enumerate(order[share]) if of == index]
        if not mine:
            raise MaskDMError(
                f"batch_size={size}: a process would have no image of a group of {group.images}; allowed: a larger "
                "batch or fewer processes"
            )
        parts.append(Part(group, [row for row, _ in mine], [place for _, place in mine]))
    return parts


@dataclass(frozen=True)
class Drawn:
    """A group of images as one step shows it."""

    view: View
    weights: Tensor  # of the denoising losses, `[b]`
    share: float  # of the mean loss of this process's images, in what the batch minimises

    def minimised(self, losses: Losses) -> Tensor:
        """The group's part of what is minimised, a scalar."""
        weighted = self.weights * losses.denoising
        return self.share * (weighted if losses.auxiliary is None else weighted + losses.auxiliary).mean()


class Views:
    """Draws what the steps of a phase show.

    Args:
        plan: the phase.
        network: whose tokens they are.
        objective: what the network predicts, at which noise levels.
        device: of everything.
        share: of the batch, that this process trains on.
        processes: how many there are.
    """

    def __init__(
        self,
        plan: PhasePlan,
        network: Network,
        objective: Objective,
        device: torch.device,
        share: slice,
        processes: int,
    ) -> None:
        self.plan, self.objective, self.device, self.share, self.processes = plan, objective, device, share, processes
        self.network = network
        self.parts = own_parts(plan.groups, share)

    def __call__(self, images: Tensor, labels: Tensor | None, random: torch.Generator) -> list[Drawn]:
        """What each group of this process's images, uint8 `[b, C, H, W]` with labels `[b]`, shows in one step."""
        tokens = patchify(self._mirrored(images, random), self.network.patch_size)
        drawn = [self._draw(part, tokens, random) for part in self.parts]
        if labels is None:
            return drawn
        told = self._dropped(labels, random)
        return [
            replace(one, view=replace(one.view, labels=told[part.images]))
            for one, part in zip(drawn, self.parts, strict=True)
        ]

    def _mirrored(self, images: Tensor, random: torch.Generator) -> Tensor:
        if not self.plan.optimisation.hflip:
            return images
        chance = torch.rand(self.plan.batch_size, generator=random, device=self.device)[self.share]
        return torch.where((chance < self.plan.optimisation.hflip)[:, None, None, None], images.flip(-1), images)

    def _dropped(self, labels: Tensor, random: torch.Generator) -> Tensor:
        """A share of the labels replaced by "no label" (classifier-free guidance: Ho & Salimans 2022)."""
        share = self.plan.optimisation.label_dropout
        if not share:  # nothing is drawn: settings without it keep their numbers
            return labels
        chance = torch.rand(self.plan.batch_size, generator=random, device=self.device)[self.share]
        return torch.where(chance < share, self.network.no_label, labels)

    def _draw(self, part: Part, tokens: Tensor, random: torch.Generator) -> Drawn:
        group, method = part.group, self.plan.method
        drawn = draw(group, method, self.network.grid, random)
        ids_keep, chance = (None if one is None else one[part.own] for one in (drawn.ids_keep, drawn.chance))
        x_0 = to_unit_range(method.visible(tokens[part.images], ids_keep))
        t = self._draw_times(group, random)[part.own]
        noise = torch.randn((group.images, *x_0.shape[1:]), generator=random, device=self.device)[part.own]
        view = View(
            group=group,
            x_t=self.objective.network_input(x_0, noise, t),
            t=self.objective.network_time(t),
            target=self.objective.target(x_0, noise, t),
            ids_keep=ids_keep,
            labels=None,
            chance=chance,
            positions=self.plan.positions,
        )
        return Drawn(
            view,
            weights=self.objective.weights(t, self.plan.optimisation.min_snr_gamma),
            # Shares may differ by an image: with these weights the mean over the processes is that over the group.
            share=group.weight * len(x_0) * self.processes / group.images,
        )

    def _draw_times(self, group: Group, random: torch.Generator) -> Tensor:
        """Times of the images of a group, in its part of the noise levels: `[group.images]`."""
        return self.objective.draw_times(group.images, random, group.noise)
