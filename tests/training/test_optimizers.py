import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from maskdm.config.recipe import Optimisation
from maskdm.networks.uvit import UViT
from maskdm.training.optimizers import (
    ema_decay,
    give_moments,
    learning_rate,
    make_optimizers,
    moments_of,
    parameter_groups,
)
from maskdm.training.plan import optimizer_flops
from tests.conftest import RECIPE


def settings_with(**changes: Any) -> Optimisation:
    return Optimisation.model_validate(RECIPE["optimisation"] | changes)


def test_weight_decay_is_for_linear_weights_only(network: UViT) -> None:
    decayed, others = parameter_groups(network, 0.03, without=[])
    names = {id(p): name for name, p in network.named_parameters()}
    assert all(names[id(p)].endswith("weight") and p.ndim == 2 for p in decayed["params"])  # type: ignore[attr-defined]
    assert {"pos_embed", "norm.weight", "head.bias"} <= {names[id(p)] for p in others["params"]}  # type: ignore[attr-defined]
    count = len(list(network.parameters()))
    assert len(decayed["params"]) + len(others["params"]) == count  # type: ignore[arg-type]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.03, 0.0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_weight_is_updated_once(network: UViT, optimizer: str) -> None:
    optimizers = make_optimizers(network, settings_with(optimizer=optimizer))
    held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters())


def test_muon_updates_the_matrices_of_the_blocks_and_nothing_else(network: UViT) -> None:
    _, muon = make_optimizers(network, settings_with(optimizer="muon"))
    held = {id(p) for group in muon.param_groups for p in group["params"]}
    names = {name for name, p in network.named_parameters() if id(p) in held}
    assert names == {name for name, p in network.named_parameters() if "block" in name and p.ndim == 2}
    assert {"mid_block.attn.qkv.weight", "out_blocks.0.skip_linear.weight"} <= names


def test_muon_steps_are_nearly_orthogonal_and_as_large_as_adamws(network: UViT) -> None:
    weight = network.mid_block.attn.proj.weight
    before = weight.detach().clone()
    optimizers = make_optimizers(network, settings_with(optimizer="muon", lr=1e-2, weight_decay=0.0))
    left, right = (torch.linalg.qr(torch.randn(16, 16)).Q for _ in range(2))
    weight.grad = left @ torch.diag(torch.logspace(-1, 1, 16)) @ right  # far from orthogonal
    for optimizer in optimizers:
        optimizer.step()
    step = (before - weight.detach()) / 1e-2
    # arXiv 2502.16982: 0.2 sqrt(max(rows, columns)) times a matrix whose singular values lie about 1
    singular = torch.linalg.svdvals(step) / (0.2 * 16**0.5)
    assert singular.min() > 0.3
    assert singular.max() < 1.5
    assert step.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.3)


def test_the_flops_of_an_update_are_those_of_muons_products_written_out(network: UViT) -> None:
    def newton_schulz(rows: int, columns: int) -> int:
        small, large = sorted((rows, columns))
        if large < 2 * small:
            return 5 * (2 * small**2 * large + 2 * small**3 + 2 * small**2 * large)
        # The Gram matrix and the last product; its square in each iteration, and but for the first or last, the product
        # of the factors and twice that with the Gram matrix.
        return 2 * (2 * small**2 * large) + (5 + 4 + 2 * 4) * 2 * small**3

    block = newton_schulz(48, 16) + newton_schulz(16, 16) + 2 * newton_schulz(64, 16)
    assert optimizer_flops(network, settings_with(optimizer="muon")) == 3 * block + newton_schulz(16, 32)
    assert optimizer_flops(network, settings_with(optimizer="adamw")) == 0


def test_the_learning_rate_rises_stays_and_falls() -> None:
    settings = settings_with(lr=0.5, warmup=0.1, decay=0.3)
    factors = np.array([learning_rate(settings, step, 100) for step in range(1, 101)]) / 0.5
    assert factors[0] == pytest.approx(0.1)
    assert (factors[9:70] == 1).all()
    assert factors[-1] == pytest.approx(1 / 30)
    assert (np.diff(factors[:10]) > 0).all()
    assert (np.diff(factors[71:]) < 0).all()
    constant = settings_with(lr=0.5, warmup=0.0, decay=0.0)
    assert {learning_rate(constant, step, 10) for step in range(1, 11)} == {0.5}


def test_the_average_forgets_the_start_of_the_phase() -> None:
    settings, steps = settings_with(ema_horizon=0.1), 1000
    weight_of_start = np.prod([ema_decay(settings, step, steps) for step in range(1, steps + 1)])
    assert weight_of_start < 1e-3
    assert ema_decay(settings, steps, steps) == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda kept: kept.pop("exp_avg"), "step, exp_avg_sq kept for it"),
        (lambda kept: kept.update(exp_avg=torch.zeros(3)), "exp_avg is not of it"),  # its kernel would write beyond it
        (lambda kept: kept.update(exp_avg=kept["exp_avg"].double()), "exp_avg is not of it"),
        (lambda kept: kept["exp_avg_sq"].fill_(float("nan")), "exp_avg_sq is not of it"),
    ],
)
def test_moments_that_are_not_of_a_weight_are_refused(spoil: Callable[[Any], object], says: str) -> None:
    weight = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.ones(4, 2)
    optimizer.step()
    moments = copy.deepcopy(moments_of([optimizer], {"weight": weight}))
    spoil(moments["weight"])
    with pytest.raises(ValueError, match=f"weight: {says}"):
        give_moments([optimizer], {"weight": weight}, moments)
