"""What a GPU replays is what it would compute operation by operation. Some tests run only where there is one."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

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
from maskdm.training.passes import EagerPasses, RecordedPasses, can_compile, compile_parts, make_passes
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
    assert isinstance(make_passes(nn.Linear(1, 1), UViT(**SIZES), device, steps_of(step_flops, 1), processes), kind)


@pytest.mark.parametrize(("device", "flops", "compiled"), [(CPU, 3e17, False), (GPU, 1e17, False), (GPU, 3e17, True)])
@pytest.mark.parametrize("network", [UViT, DiT])
def test_the_blocks_of_a_long_phase_are_compiled(
    network: type[Network], device: torch.device, flops: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "can_compile", lambda _: True)
    one = network(**SIZES)
    make_passes(nn.Linear(1, 1), one, device, steps_of(flops / 1000, 1000), 2)
    assert len(one.parts()) == SIZES["depth"]
    assert all((part._compiled_call_impl is not None) == compiled for part in one.parts())
    assert all(part._compiled_call_impl is None for part in copy.deepcopy(one).parts())


def test_where_nothing_can_be_compiled_a_long_phase_says_so_and_trains(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", none)
    can_compile.cache_clear()
    network = UViT(**SIZES)
    trainer = trainer_on(CPU, plans("drop", recipe, network=network)[0], Path(), network)
    compile_parts(network, CPU)
    can_compile.cache_clear()
    assert "no working C++ compiler" in capsys.readouterr().err
    trainer.train_step(torch.randint(256, (BATCH, 1, 8, 8), dtype=torch.uint8), None)


def test_every_shape_is_compiled_however_many_a_process_has_met(monkeypatch: pytest.MonkeyPatch) -> None:
    need_compiler()
    torch.compiler.reset()
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        monkeypatch.setattr(torch._dynamo.config, limit, 1)
    part = nn.GELU()
    compile_parts(cast(Network, SimpleNamespace(parts=lambda: [part])), CPU)
    counted = torch._dynamo.utils.counters["stats"]
    counted.clear()
    with torch.no_grad():
        for tokens in (3, 5):
            part(torch.zeros(2, tokens))
    assert counted["unique_graphs"] == 2


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("uvit", "drop"),
        pytest.param("uvit", "mixed_crops", marks=pytest.mark.slow),
        pytest.param("uvit", "route", marks=pytest.mark.slow),
        pytest.param("dit", "drop", marks=pytest.mark.slow),
        pytest.param("dit", "sized_to_noise", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_phase_ends_as_an_eager_one_and_resumed_with_the_same_bits(
    kind: str, name: str, recipe: Recipe, tmp_path: Path
) -> None:
    need_compiler()
    first = NETWORKS[kind]()
    plan = replace(plans(name, recipe, network=first)[0], steps=6, heldout_steps=(3, 6), snapshot_steps={})
    images = torch.randint(256, (BATCH, 1, 8, 8), dtype=torch.uint8).numpy()
    data = PreparedData(images, None, {"train": BATCH})

    def ends(folder: str, steps: int = 6, compiled: bool = True) -> list[Tensor]:
        shorter = replace(plan, steps=steps, heldout_steps=(3, 6)[: steps // 3])
        network = copy.deepcopy(first)
        trainer = PhaseTrainer(network, OBJECTIVE, data, shorter, lambda _: 0.5, 0, tmp_path / folder, lambda _: None)
        if compiled:
            compile_parts(network, CPU)
        trainer.run()
        return weights(trainer)

    eager = ends("eager", compiled=False)
    whole = ends("whole")
    ends("resumed", steps=3)
    torch._dynamo.reset()
    assert all(torch.equal(a, b) for a, b in zip(whole, ends("resumed"), strict=True))
    for a, b in zip(eager, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(eager, whole, strict=True)), "not one is rounded otherwise"


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
    loss = make_passes(trainer.trainee, network, CPU, plan, 1)(shown)
    [one], [own] = shown, trainer.trainee([one.view for one in shown])
    assert loss == (one.weights * own.denoising).mean()
    assert all(weight.grad is not None for weight in network.parameters())


def need_compiler() -> None:
    if not can_compile(CPU):
        pytest.skip("no C++ compiler")


def steps_of(step_flops: float, steps: int) -> PhasePlan:
    """What of a plan is asked for here."""
    return cast(PhasePlan, SimpleNamespace(steps=steps, step_flops=step_flops))


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
@pytest.mark.parametrize(("network", "name"), [("uvit", "drop"), ("uvit", "mixed_crops"), ("dit", "route")])
def test_compiled_steps_are_replayed_too_and_come_to_the_same_bits_again(
    network: str, name: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "LONG_PHASE", 0.0)
    first, device = NETWORKS[network](), choose_device()
    plan = replace(plans(name, recipe, network=first)[0], steps=8)
    ends = []
    for _ in range(2):
        torch.compiler.reset()
        trainer = trainer_on(device, plan, tmp_path, copy.deepcopy(first))
        assert trainer.network.parts()[0]._compiled_call_impl is not None
        for step in range(8):
            images = torch.randint(256, (BATCH, 1, 8, 8), generator=torch.Generator().manual_seed(step)).byte()
            trainer.train_step(images, None)
        ends.append(weights(trainer))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


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
