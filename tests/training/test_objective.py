from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from maskdm.config.masks import PatchMask
from maskdm.methods.masks import draw_ids_keep
from maskdm.networks.patches import gather_tokens
from maskdm.networks.uvit import UViT
from maskdm.runtime.seeding import generator
from maskdm.training.objective import (
    EDMObjective,
    Objective,
    VPObjective,
    cosine_schedule,
    denoising_loss,
    make_objective,
)
from tests.denoisers import EDM, OBJECTIVES, Oracle, ddpm, objective_settings

SCHEDULES = ("linear", "squaredcos_cap_v2")
LEVELS = torch.cat([torch.tensor([1e-4]), torch.linspace(0.002, 0.9998, 40)])  # alpha_bar: within all processes


def batch(objective: Objective, batch_size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    t = objective.draw_times(batch_size, torch.Generator().manual_seed(0))
    return torch.rand(batch_size, 16, 4) * 2 - 1, t, torch.randn(batch_size, 16, 4)


# --- the processes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta_schedule", SCHEDULES)
def test_the_schedule_is_the_papers(beta_schedule: str) -> None:
    T = 1000
    steps = torch.arange(T + 1, dtype=torch.float64)
    if beta_schedule == "linear":  # Ho et al. 2020
        expected = torch.cumprod(1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64), 0)
    else:  # Nichol & Dhariwal 2021, eq. 17
        f = torch.cos((steps / T + 0.008) / 1.008 * torch.pi / 2) ** 2
        expected = torch.cumprod(1 - (1 - f[1:] / f[:-1]).clamp(max=0.999), 0)
    found = ddpm(T, beta_schedule, "epsilon").alpha_bar(torch.arange(T))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("beta_schedule", SCHEDULES)
def test_whole_steps_are_those_of_diffusers_to_the_last_bit(beta_schedule: str, prediction_type: str) -> None:
    schedule, objective = DDPMScheduler(1000, beta_schedule=beta_schedule), ddpm(1000, beta_schedule, prediction_type)
    t = torch.arange(1000)
    x_0, noise = torch.rand(1000, 2, 3), torch.randn(1000, 2, 3)
    target = {"epsilon": noise, "v_prediction": schedule.get_velocity(x_0, noise, t), "sample": x_0}[prediction_type]
    assert torch.equal(objective.alpha_bar(t), schedule.alphas_cumprod)
    assert torch.equal(objective.network_input(x_0, noise, t), schedule.add_noise(x_0, noise, t))
    assert torch.equal(objective.target(x_0, noise, t), target)
    assert torch.equal(objective.network_time(t), t)


def test_continuous_time_meets_the_cosine_schedule_at_its_steps() -> None:
    objective = make_objective(objective_settings(OBJECTIVES["vp, epsilon"]))
    assert isinstance(objective, VPObjective)
    t = (torch.arange(1000) + 1) / 1000
    torch.testing.assert_close(objective.alpha_bar(t).float(), cosine_schedule(1000), rtol=1e-3, atol=1e-7)


def test_edm_is_the_papers_preconditioning() -> None:
    """Karras et al. 2022, Table 1: with F exact, D = c_skip x + c_out F(c_in x) is x_0, and lambda c_out^2 is 1."""
    objective = EDMObjective(objective_settings(EDM))  # type: ignore[arg-type]
    sigma, data = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0])[:, None], 0.5
    x_0, noise = torch.rand(5, 7), torch.randn(5, 7)
    x = x_0 + sigma * noise
    c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2).sqrt()
    c_in, c_noise = 1 / (sigma**2 + data**2).sqrt(), sigma.log() / 4
    t = sigma[:, 0]
    torch.testing.assert_close(objective.network_input(x_0, noise, t), c_in * x)
    torch.testing.assert_close(c_skip * x + c_out * objective.target(x_0, noise, t), x_0, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(objective.network_time(t), 1000 * c_noise[:, 0])
    error_of_x_0 = objective.epsilon_error(torch.ones(5), t) * t**2
    torch.testing.assert_close(error_of_x_0, c_out[:, 0] ** 2)


def test_flow_is_a_straight_line_and_its_velocity() -> None:
    objective = make_objective(objective_settings(OBJECTIVES["flow"]))
    x_0, noise, t = torch.rand(3, 7), torch.randn(3, 7), torch.tensor([0.0, 0.3, 1.0])
    torch.testing.assert_close(objective.network_input(x_0, noise, t), torch.lerp(x_0, noise, t[:, None]))
    torch.testing.assert_close(objective.target(x_0, noise, t), noise - x_0)
    assert objective.network_time(t).tolist() == pytest.approx([0, 300, 1000])


# --- levels and times ---------------------------------------------------------------------------------------


def test_a_level_has_a_time_of_every_objective(objective: Objective) -> None:
    mix = objective.coefficients(objective.times_at(LEVELS))
    torch.testing.assert_close(mix.a**2 / (mix.a**2 + mix.b**2), LEVELS, rtol=1e-4, atol=0)
    torch.testing.assert_close(mix.b**2 / (mix.a**2 + mix.b**2), 1 - LEVELS, rtol=1e-3, atol=0)


def test_a_level_that_a_schedule_does_not_reach_is_mixed_and_its_last_step_is_told() -> None:
    objective, levels = ddpm(1000, "linear", "epsilon"), torch.tensor([0.99996, 2e-9])
    t = objective.times_at(levels)
    assert objective.network_time(t).tolist() == [0, 999]
    torch.testing.assert_close(objective.alpha_bar(t), levels, rtol=1e-6, atol=0)


def test_steps_of_the_schedule_have_themselves_as_times() -> None:
    for beta_schedule in SCHEDULES:
        objective, t = ddpm(1000, beta_schedule, "epsilon"), torch.arange(1000)
        found = objective.times_at(objective.alpha_bar(t))
        assert torch.equal(found.float(), t.float())
        assert torch.equal(objective.alpha_bar(found), objective.alpha_bar(t))


def test_times_come_from_the_training_distribution_of_which_a_part_is_cut(objective: Objective) -> None:
    random = torch.Generator().manual_seed(0)
    whole = objective.draw_times(20_000, random).double()
    told, parts = objective.network_time(whole), ((0.0, 0.25), (0.25, 0.75), (0.75, 1.0))
    close = 0.05 * told.std().item()
    for low, high in parts:
        found = objective.network_time(objective.draw_times(20_000, random, (low, high)).double())
        if low > 0:
            assert found.min() >= told.quantile(low) - close
        if high < 1:
            assert found.max() <= told.quantile(high) + close
        assert found.median().item() == pytest.approx(told.quantile((low + high) / 2).item(), abs=close)
    mix = objective.coefficients(whole.sort().values)
    assert ((mix.b / mix.a).diff() >= 0).all(), "low quantiles are less noisy"


def test_times_are_distributed_as_the_papers_say() -> None:
    random = torch.Generator().manual_seed(0)
    edm = make_objective(objective_settings(EDM)).draw_times(100_000, random).log()
    assert (edm.mean().item(), edm.std().item()) == pytest.approx((-1.2, 1.2), abs=0.02)
    flow = make_objective(objective_settings(OBJECTIVES["flow, logit-normal"])).draw_times(100_000, random).logit()
    assert (flow.mean().item(), flow.std().item()) == pytest.approx((0.0, 1.0), abs=0.02)


def test_no_draw_is_infinite(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    """A uniform draw is exactly 0 once in 17 million."""
    for drawn in (0.0, 1.0):
        monkeypatch.setattr("torch.rand", lambda count, drawn=drawn, **_: torch.full((count,), drawn))
        t = objective.draw_times(1, torch.Generator())
        assert objective.network_time(t).isfinite().all()
        assert objective.network_input(torch.ones(1, 1), torch.ones(1, 1), t).isfinite().all()
        assert objective.target(torch.ones(1, 1), torch.ones(1, 1), t).isfinite().all()
        assert objective.weights(t, 5.0).isfinite().all()


# --- errors and weights -------------------------------------------------------------------------------------


def test_a_perfect_denoiser_has_no_loss_and_a_wrong_one_its_error_in_epsilon(objective: Objective) -> None:
    t = objective.times_at(LEVELS)
    x_0, noise = torch.rand(len(t), 16, 4) * 2 - 1, torch.randn(len(t), 16, 4)
    perfect = denoising_loss(Oracle(objective, x_0, noise), objective, x_0, t, noise)
    torch.testing.assert_close(perfect, torch.zeros(len(t)), atol=1e-8, rtol=0)
    wrong = denoising_loss(Oracle(objective, x_0, noise, error=0.5), objective, x_0, t, noise)
    torch.testing.assert_close(objective.epsilon_error(wrong, t), torch.full((len(t),), 0.25), rtol=1e-3, atol=0)


def test_min_snr_weighs_the_error_in_x_0_whatever_the_network_predicts(objective: Objective) -> None:
    gamma, t = 5.0, objective.times_at(LEVELS)
    snr = LEVELS / (1 - LEVELS)
    error_of_x_0 = objective.epsilon_error(torch.ones(len(t)), t) / snr  # a x_0 + b eps being given
    torch.testing.assert_close(objective.weights(t, gamma), snr.clamp(max=gamma) * error_of_x_0, rtol=1e-3, atol=0)
    assert objective.weights(t, None).tolist() == [1.0] * len(t)


@pytest.mark.parametrize("beta_schedule", SCHEDULES)
def test_the_signal_to_noise_ratio_is_that_of_diffusers(beta_schedule: str) -> None:
    objective, t = ddpm(100, beta_schedule, "epsilon"), torch.arange(100)
    snr = compute_snr(DDPMScheduler(100, beta_schedule=beta_schedule), t)
    torch.testing.assert_close(objective.weights(t, 5.0), snr.clamp(max=5.0) / snr, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", [name for name, raw in OBJECTIVES.items() if "prediction_type" in raw])
def test_closed_forms_are_what_the_general_formulas_come_to(name: str) -> None:
    objective = make_objective(objective_settings(OBJECTIVES[name]))
    t, loss = objective.times_at(LEVELS), torch.rand(len(LEVELS))
    general = Objective.epsilon_error(objective, loss, t)
    torch.testing.assert_close(objective.epsilon_error(loss, t), general, rtol=1e-4, atol=0)
    torch.testing.assert_close(objective.weights(t, 5.0), Objective.weights(objective, t, 5.0), rtol=1e-4, atol=0)


# --- the loss -----------------------------------------------------------------------------------------------


def gradients(network: UViT, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_the_masked_loss_with_everything_kept_in_any_order_is_the_dense_loss(
    network: UViT, objective: Objective
) -> None:
    x_0, t, noise = batch(objective)
    ids_keep = torch.stack([torch.arange(16), *(torch.randperm(16) for _ in range(3))])
    dense = denoising_loss(network, objective, x_0, t, noise)
    shuffled = gather_tokens(x_0, ids_keep), t, gather_tokens(noise, ids_keep)
    masked = denoising_loss(network, objective, *shuffled, ids_keep)
    torch.testing.assert_close(masked, dense)
    torch.testing.assert_close(gradients(network, masked.mean()), gradients(network, dense.mean()))


def test_the_gradient_reaches_the_kept_positions_and_all_that_tokens_share(network: UViT) -> None:
    objective = ddpm(100, "linear", "epsilon")
    x_0, t, noise = batch(objective)
    ids_keep = torch.tensor([[0, 1], [1, 5], [5, 9], [9, 0]])  # an own mask for each image
    visible = gather_tokens(x_0, ids_keep), t, gather_tokens(noise, ids_keep)
    found = gradients(network, denoising_loss(network, objective, *visible, ids_keep)[:2].sum())
    assert found["pos_embed"].abs().sum(1).nonzero().ravel().tolist() == [0, 1, 5]
    assert found.keys() == dict(network.named_parameters()).keys()
    assert all(gradient.any() for gradient in found.values())


def test_a_removed_token_changes_neither_loss_nor_gradient(network: UViT) -> None:
    objective = ddpm(100, "linear", "epsilon")
    x_0, t, noise = batch(objective)
    ids_keep = draw_ids_keep(PatchMask(strategy="patch", ratio=0.75), network.grid, 4, generator("cpu", 0))
    removed = torch.ones(4, 16, dtype=torch.bool).scatter_(1, ids_keep, False)
    results: list[Any] = []
    for pixels in (x_0, torch.where(removed[:, :, None], 100.0, x_0)):
        visible = gather_tokens(pixels, ids_keep)
        loss = denoising_loss(network, objective, visible, t, gather_tokens(noise, ids_keep), ids_keep).mean()
        results.append([loss.detach(), *gradients(network, loss).values()])
    assert len(results[0]) == 1 + len(list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("part", [(0.0, 1.0), (0.25, 0.5)])
@pytest.mark.parametrize("raw", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_each_equal_part_of_the_noise_levels_is_drawn_once_a_batch(
    raw: dict[str, Any], part: tuple[float, float]
) -> None:
    """The same quantiles as an even grid's, but for where in its part each lies."""
    objective = make_objective(objective_settings(raw))
    drawn = objective.draw_times(10, generator("cpu", 0), part)
    many = objective.draw_times(10_000, generator("cpu", 1), part).sort().values
    for index, time in enumerate(drawn):
        low, high = (many[min(9_999, 1000 * edge)] for edge in (index, index + 1))
        slack = 0.02 * (many[-1] - many[0])
        assert low - slack <= time <= high + slack
