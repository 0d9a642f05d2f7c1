"""The held-out loss: one scale for all objectives, on data whose best denoiser is known."""

import pytest
import torch
from torch import Tensor

from maskdm.networks.uvit import UViT
from maskdm.runtime.seeding import generator
from maskdm.training.heldout import HeldoutLoss, even_levels
from maskdm.training.objective import Objective, make_objective
from tests.denoisers import OBJECTIVES, Oracle, Wiener, ddpm, objective_settings

MEAN, STD = 0.2, 0.3


def gaussian(count: int) -> Tensor:
    return MEAN + STD * torch.randn(count, 16, 4, generator=torch.Generator().manual_seed(1))


def noise_of(x_0: Tensor) -> Tensor:
    """What `HeldoutLoss` draws."""
    return torch.randn(x_0.shape, generator=generator("cpu", 0))


def test_it_is_repeatable_and_covers_the_cosine_schedule_evenly(network: UViT) -> None:
    objective = ddpm(100, "squaredcos_cap_v2", "v_prediction")
    x_0 = torch.rand(50, 16, 4) * 2 - 1
    measured = [HeldoutLoss(objective, x_0, None, generator("cpu", 0), batch_size=size) for size in (7, 50)]
    assert measured[0].t.tolist() == pytest.approx(list(range(1, 100, 2)))
    values = [loss(network) for loss in measured]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert measured[0](network) == values[0]


def test_the_best_denoiser_has_the_same_loss_in_all_objectives_and_it_is_that_of_the_closed_form(
    objective: Objective,
) -> None:
    """x_t = a x_0 + b eps given, eps has the variance a^2 s^2 / (a^2 s^2 + b^2)."""
    x_0, levels = gaussian(1000), even_levels(1000, 1000)
    within = levels > 5e-5  # the last of the linear schedule has 4e-5, the first 0.9999
    within &= levels < 0.9999
    heldout = HeldoutLoss(objective, x_0, None, generator("cpu", 0), 256)
    heldout.x_0, heldout.t, heldout.noise = (value[within] for value in (heldout.x_0, heldout.t, heldout.noise))
    level, centred = levels[within][:, None, None], x_0[within] - MEAN
    x_t = level.sqrt() * centred + (1 - level).sqrt() * noise_of(x_0)[within]
    variance = level * STD**2 + 1 - level
    epsilon = (1 - level).sqrt() / variance * x_t
    loss = heldout(Wiener(objective, MEAN, STD))
    assert loss == pytest.approx((epsilon - noise_of(x_0)[within]).square().mean().item(), rel=1e-4)
    assert loss == pytest.approx((level * STD**2 / variance).mean().item(), rel=0.02)


def test_a_perfect_denoiser_has_none(objective: Objective) -> None:
    x_0 = gaussian(64)
    heldout = HeldoutLoss(objective, x_0, None, generator("cpu", 0), 256)
    assert heldout(Oracle(objective, x_0, noise_of(x_0))) == pytest.approx(0, abs=1e-8)


def test_levels_and_images_do_not_depend_on_the_objective() -> None:
    x_0 = gaussian(1024)
    levels = even_levels(1024, 1000)
    for raw in OBJECTIVES.values():
        objective = make_objective(objective_settings(raw))
        heldout = HeldoutLoss(objective, x_0, None, generator("cpu", 0), 256)
        mix = objective.coefficients(heldout.t)
        torch.testing.assert_close((mix.b / mix.a).square(), (1 - levels) / levels, rtol=1e-3, atol=0)
        assert torch.equal(heldout.noise, noise_of(x_0))
