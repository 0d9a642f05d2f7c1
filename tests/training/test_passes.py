"""What a GPU replays is what it would compute operation by operation. Some tests run only where there is one."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.methods.drop import DROP
from maskdm.networks.dit import DiT
from maskdm.networks.network import Network
from maskdm.networks.unet import UNet
from maskdm.networks.uvit import UViT
from maskdm.runtime.device import choose_device
from maskdm.training import passes
from maskdm.training.loop import PhaseTrainer
from maskdm.training.passes import EagerPasses, RecordedPasses, make_passes
from maskdm.training.plan import PhasePlan
from tests.methods.test_methods import BATCH, OBJECTIVE, PHASES, SIZES, drawn, plans, weights

CPU, GPU = torch.device("cpu"), torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
UNET: dict[str, Any] = {"block_out_channels": (4, 8), "layers_per_block": 1, "attention_levels": ()}
NETWORKS = {
    "uvit": lambda: UViT(**SIZES),
    "uvit with classes": lambda: UViT(**SIZES, num_classes=3),
    "dit": lambda: DiT(**SIZES),
    "unet": lambda: UNet(**{key: SIZES[key] for key in ("image_size", "patch_size", "in_channels")}, **UNET),
}
CONVOLUTIONAL = ("mixed_crops", "coarse", "sized_to_noise")  # the methods of a network that has no blocks to tell apart


@pytest.mark.parametrize(
    ("device", "step_flops", "processes", "kind"),
    [
        (GPU, 1e12, 1, RecordedPasses),
        (GPU, 1e14, 1, EagerPasses),
        (GPU, 1e12, 2, EagerPasses),
        (CPU, 1e9, 1, EagerPasses),
    ],
)
def test_small_steps_of_one_gpu_are_recorded(
    device: torch.device, step_flops: float, processes: int, kind: type[object]
) -> None:
    assert isinstance(make_passes(nn.Linear(1, 1), device, step_flops, processes), kind)


@pytest.mark.parametrize("name", PHASES)
def test_all_that_differs_between_two_steps_is_an_input(name: str, recipe: Recipe) -> None:
    network = UViT(**SIZES)
    plan = plans(name, recipe, network=network)[0]
    for one in drawn(plan, network):
        labels = torch.zeros(len(one.view.x_t), dtype=torch.long)
        told = replace(one, view=replace(one.view, labels=labels))
        inputs = {id(value) for value in passes._tensors([told])}
        fixed = (told.share, told.view.group, told.view.positions)
        everything = [*vars(told.view).values(), told.weights, *fixed]
        assert inputs == {id(value) for value in everything if isinstance(value, Tensor)}
        assert id(labels) in inputs


def test_eager_passes_fill_the_gradients_and_return_the_loss(recipe: Recipe) -> None:
    network = UViT(**SIZES)
    plan = plans("drop", recipe, network=network)[0]
    trainer = trainer_on(CPU, plan, Path(), network)
    shown = drawn(plan, network)
    loss = make_passes(trainer.trainee, CPU, 1e9, 1)(shown)
    [one], [own] = shown, trainer.trainee([one.view for one in shown])
    assert loss == (one.weights * own.denoising).mean()
    assert all(weight.grad is not None for weight in network.parameters())


def trainer_on(device: torch.device, plan: PhasePlan, folder: Path, network: Network) -> PhaseTrainer:
    data = PreparedData(torch.zeros(1, 1, 8, 8, dtype=torch.uint8).numpy(), None, {})
    return PhaseTrainer(network.to(device), OBJECTIVE, data, plan, lambda _: 0.5, 0, folder, lambda _: None)


def cases() -> list[tuple[str, str]]:
    return [
        (network, name)
        for network in NETWORKS
        for name in PHASES
        if network != "unet" or (name.partition(",")[0] in CONVOLUTIONAL and "patch" not in name)
    ]


@needs_gpu
@pytest.mark.parametrize(("network", "name"), cases())
def test_replayed_steps_end_with_the_weights_of_eager_ones(
    network: str, name: str, recipe: Recipe, tmp_path: Path
) -> None:
    device = choose_device()
    first = NETWORKS[network]()
    for weight in first.parameters():
        nn.init.normal_(weight, std=0.1)
    plan = replace(plans(name, recipe, network=UViT(**SIZES))[0], steps=8)
    ends = []
    for recorded in (True, False):
        trainer = trainer_on(device, plan, tmp_path, copy.deepcopy(first))
        assert isinstance(trainer.passes, RecordedPasses)
        if not recorded:
            trainer.passes = trainer.passes.eager
        for step in range(8):
            random = torch.Generator().manual_seed(step)
            images = torch.randint(256, (BATCH, 1, 8, 8), dtype=torch.uint8, generator=random)
            labels = torch.randint(3, (BATCH,), generator=random) if first.num_classes else None
            trainer.train_step(images, labels)
        ends.append([*weights(trainer), torch.stack(trainer._losses)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert not all(torch.equal(a, b.to(device)) for a, b in zip(ends[0], first.state_dict().values(), strict=False))


@needs_gpu
def test_a_network_with_all_tokens_is_replayed_too(recipe: Recipe, tmp_path: Path) -> None:
    plan = plans("drop", recipe, network=UViT(**SIZES))[1]
    assert plan.method == DROP
    assert not plan.mask
    trainer = trainer_on(choose_device(), plan, tmp_path, UViT(**SIZES))
    images = torch.randint(256, (plan.batch_size, 1, 8, 8), dtype=torch.uint8)
    for _ in range(3):
        trainer.train_step(images, None)
    assert torch.stack(trainer._losses).isfinite().all()
