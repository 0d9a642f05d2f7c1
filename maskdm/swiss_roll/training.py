"""Training on the Swiss roll: first on single coordinates, then on pairs, or on pairs from the start.

Each step draws fresh points. Everything that is drawn is a function of (seed, phase, step), as in `training`, whose
own loop reads images from a disk.
"""

import copy
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from maskdm.config.masks import Mask, PatchMask
from maskdm.config.method import Group
from maskdm.evaluation.sampling import sample_tokens
from maskdm.methods.drop import DROP
from maskdm.methods.masks import draw_ids_keep
from maskdm.methods.method import Trainee
from maskdm.networks.patches import gather_tokens
from maskdm.networks.uvit import UViT
from maskdm.runtime.seeding import generator
from maskdm.swiss_roll.data import SwissRoll, draw_points
from maskdm.training.objective import Objective, denoising_loss, make_objective
from maskdm.training.optimizers import make_optimizers, update
from maskdm.training.plan import group_flops, optimizer_flops

Arm = Literal["pretrained", "scratch"]
Samples = dict[str, np.ndarray]  # ALONE, or steps of training on pairs -> points [n, 2]

ONE_OF_TWO = PatchMask(strategy="patch", ratio=0.5)
ALONE = "alone"  # samples of the pre-trained network, each coordinate drawn on its own


class Alone(UViT):  # type: ignore[misc]  # diffusers ships no types
    """A network that sees one coordinate at a time, as in pre-training: it samples the product of the marginals."""

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        ids_keep: Tensor | None = None,
        labels: Tensor | None = None,
        positions: bool = True,
    ) -> Tensor:
        """Noisy points `[B, 2, 1]` at time steps `[B]` -> the prediction for each coordinate, `[B, 2, 1]`."""
        places = torch.arange(self.num_tokens).expand(len(x_t), -1)
        one_by_one = zip(x_t.split(1, dim=1), places.split(1, dim=1), strict=True)
        return torch.cat([super(Alone, self).forward(x, t, place) for x, place in one_by_one], dim=1)


def new_network(settings: SwissRoll, seed: int) -> UViT:
    """A U-ViT of two tokens of one number, with weights drawn from `seed`: the same for both arms."""
    sizes = settings.model_dump(include={"embed_dim", "depth", "num_heads"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UViT(image_size=(1, 2), patch_size=1, in_channels=1, **sizes)


def alone(network: UViT) -> Alone:
    """`network`'s weights in an `Alone`."""
    copied = Alone(**network.config)
    copied.load_state_dict(network.state_dict())
    return copied


def step_flops(settings: SwissRoll, mask: Mask | None) -> float:
    """FLOPs of a step on points of which the mask, if there is one, leaves one coordinate: there, back and update."""
    network = new_network(settings, seed=0)
    update = optimizer_flops(network, settings.recipe.optimisation)
    return settings.batch_size * group_flops(Trainee(network, DROP), Group(1, mask)) + update


def pretrain_flops(settings: SwissRoll) -> float:
    """What the pre-trained arm has spent when its training on pairs begins."""
    return settings.pretrain_steps * step_flops(settings, ONE_OF_TWO)


def steps_at_equal_compute(settings: SwissRoll) -> list[int]:
    """For each look: how many steps scratch can take with what the other arm has spent, pre-training counted in."""
    head_start = round(pretrain_flops(settings) / step_flops(settings, None))
    return [step + head_start for step in settings.finetune_steps]


def train_arm(settings: SwissRoll, arm: Arm, seed: int, progress: Callable[[], object]) -> Samples:
    """Train one arm, and draw samples of its averaged weights on the way.

    Scratch is looked at after as many steps as the other arm's fine-tuning, and once more at equal compute.

    Args:
        settings: the block `swiss_roll`.
        arm: `scratch` has no pre-training.
        seed: of everything that is drawn; both arms draw the same pairs.
        progress: called after every step.
    """
    network, samples, looks = new_network(settings, seed), Samples(), {*settings.finetune_steps}
    if arm == "pretrained":
        network = train_phase(settings, network, seed, ONE_OF_TWO, settings.pretrain_steps, lambda *_: progress())
        samples[ALONE] = draw_samples(settings, alone(network), seed)
    else:
        looks |= {*steps_at_equal_compute(settings)}

    def look(step: int, ema: UViT) -> None:
        progress()
        if step in looks:
            samples[str(step)] = draw_samples(settings, ema, seed)

    samples["0"] = draw_samples(settings, network, seed)
    train_phase(settings, network, seed, None, max(looks), look)
    return samples


def train_phase(
    settings: SwissRoll,
    start: UViT,
    seed: int,
    mask: Mask | None,
    steps: int,
    after_step: Callable[[int, UViT], object],
) -> UViT:
    """Train a copy of `start` and return its averaged weights, which `after_step` sees with every step, from 1.

    Warm-up and averaging are shares of the other arm's phase for scratch too, which may take more steps: up to any
    common step, both arms train in the same way.
    """
    optimisation = settings.recipe.optimisation
    objective = make_objective(settings.recipe.objective)
    network = copy.deepcopy(start).train().requires_grad_(True)
    ema = copy.deepcopy(start).eval().requires_grad_(False)
    optimizers = make_optimizers(network, optimisation)
    span = settings.pretrain_steps if mask else settings.finetune_steps[-1]
    for step in range(1, steps + 1):
        random = generator("cpu", seed, "train", 0 if mask else 1, step)
        batch_loss(network, objective, mask, settings.batch_size, random).backward()
        update(network, ema, optimizers, optimisation, step, span)
        after_step(step, ema)
    return ema


def batch_loss(
    network: UViT, objective: Objective, mask: Mask | None, batch_size: int, random: torch.Generator
) -> Tensor:
    """The denoising loss of fresh points, of which the mask, if there is one, leaves one coordinate."""
    x_0, ids_keep = draw_points(batch_size, random)[..., None], None
    if mask:
        ids_keep = draw_ids_keep(mask, network.grid, batch_size, random)
        x_0 = gather_tokens(x_0, ids_keep)
    t = objective.draw_times(batch_size, random)
    noise = torch.randn(x_0.shape, generator=random)
    return denoising_loss(network, objective, x_0, t, noise, ids_keep).mean()


def draw_samples(settings: SwissRoll, network: UViT, seed: int) -> np.ndarray:
    """Points of `network`, `[samples, 2]`. All looks of a seed start from the same noise."""
    objective, size = settings.recipe.objective, settings.sampling.batch_size
    generators = [generator("cpu", seed, "sample", index) for index in range(settings.samples)]
    parts = [generators[start : start + size] for start in range(0, settings.samples, size)]
    return torch.cat([sample_tokens(network, objective, settings.sampling, part) for part in parts])[..., 0].numpy()
