from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from maskdm.config.objective import SAMPLERS, TIME_SCALE
from maskdm.config.params import Sampling
from maskdm.evaluation.sampling import guided_prediction, make_sampler, sample_images, sample_tokens, slerp, to_pixels
from maskdm.networks.uvit import UViT
from maskdm.runtime.seeding import generator
from maskdm.training.objective import make_objective
from tests.denoisers import OBJECTIVES, Wiener, ddpm, objective_settings, told_times

LINEAR = objective_settings(OBJECTIVES["linear, epsilon"])
# Every sampler of every objective; ddim also with noise.
CASES = [
    pytest.param(raw, sampler, eta, id=f"{name}, {sampler}, {eta}")
    for name, raw in OBJECTIVES.items()
    for sampler in SAMPLERS[raw["name"]]
    for eta in ((0.0, 1.0) if sampler == "ddim" else (0.0,))
]
# Evaluations after which the mean and the spread of Gaussian samples are right; Euler's method is of first order.
ENOUGH = {"ddpm": 250, "ddim": 250, "euler": 250, "dpm_solver": 50, "unipc": 50, "heun": 50}


def sampling(sampler: str, eta: float = 0.0, steps: int = 10, batch_size: int = 4, scale: float = 1.0) -> Sampling:
    settings = {"sampler": sampler, "num_inference_steps": steps, "eta": eta, "batch_size": batch_size}
    return Sampling.model_validate(settings | {"guidance_scale": scale})


@pytest.mark.parametrize(("raw", "sampler", "eta"), CASES)
def test_gaussian_data_keeps_its_mean_and_spread(raw: dict[str, Any], sampler: str, eta: float) -> None:
    """A case with a known answer: for x_0 ~ N(mean, s^2) the best denoiser is linear."""
    mean, spread = 0.2, 0.3
    settings = objective_settings(raw)
    denoiser: Any = Wiener(make_objective(settings), mean, spread)
    generators = [generator("cpu", i) for i in range(200)]
    tokens = sample_tokens(denoiser, settings, sampling(sampler, eta, ENOUGH[sampler]), generators)
    assert tokens.mean().item() == pytest.approx(mean, abs=0.01)
    assert tokens.std().item() == pytest.approx(spread, abs=0.02)


@pytest.mark.parametrize(("raw", "sampler", "eta"), CASES)
def test_data_that_is_one_image_is_found_in_few_steps(raw: dict[str, Any], sampler: str, eta: float) -> None:
    settings = objective_settings(raw)
    denoiser: Any = Wiener(make_objective(settings), 0.6, 0.0)
    tokens = sample_tokens(denoiser, settings, sampling(sampler, eta, 20), [generator("cpu", i) for i in "ab"])
    torch.testing.assert_close(tokens, torch.full((2, 16, 4), 0.6), atol=0.02, rtol=0)


class Imperfect(Wiener):
    """A hundredth off, as a trained network is."""

    def forward(self, x_t: Tensor, told: Tensor, *_: Any, **__: Any) -> Tensor:
        return super().forward(x_t, told) + 0.01


@pytest.mark.parametrize(("raw", "sampler", "eta"), [case for case in CASES if "epsilon" in str(case.id)])
def test_a_small_error_where_all_is_noise_does_not_spoil_an_image(
    raw: dict[str, Any], sampler: str, eta: float
) -> None:
    """There an error of epsilon is one of x_0 that is up to 20,000 times as large."""
    settings = objective_settings(raw)
    denoiser: Any = Imperfect(make_objective(settings), 0.2, 0.3)
    generators = [generator("cpu", i) for i in range(50)]
    tokens = sample_tokens(denoiser, settings, sampling(sampler, eta, ENOUGH[sampler]), generators)
    assert tokens.mean().item() == pytest.approx(0.2, abs=0.1)
    assert tokens.std().item() == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("sampler", SAMPLERS["flow"])
def test_a_straight_line_is_integrated_in_one_step(sampler: str) -> None:
    """With one image the velocity along a path is constant: any number of steps is exact."""
    settings = objective_settings(OBJECTIVES["flow"])
    denoiser: Any = Wiener(make_objective(settings), 0.6, 0.0)
    tokens = sample_tokens(denoiser, settings, sampling(sampler, steps=1), [generator("cpu", 0)])
    torch.testing.assert_close(tokens, torch.full((1, 16, 4), 0.6), atol=5e-3, rtol=0)


@pytest.mark.parametrize(("raw", "sampler", "eta"), CASES)
def test_the_network_is_told_the_noise_that_the_sampler_believes_in(
    raw: dict[str, Any], sampler: str, eta: float
) -> None:
    settings = objective_settings(raw)
    objective = make_objective(settings)
    found = make_sampler(sampling(sampler, eta), settings, torch.device("cpu"))
    if sampler in ("ddpm", "ddim"):
        signal = found.scheduler.alphas_cumprod[found.scheduler.timesteps]
        sigmas = ((1 - signal) / signal).sqrt()
    else:
        sigmas = found.scheduler.sigmas[:-1].double()
        sigmas = sigmas / (1 - sigmas) if raw["name"] == "flow" else sigmas
    mix = objective.coefficients(told_times(objective, found.network_times))
    ratio = (mix.b / mix.a).double()
    torch.testing.assert_close(ratio[1:], sigmas[1:].double(), rtol=2e-3, atol=0)  # the first may be pure noise


@pytest.mark.parametrize("sampler", SAMPLERS["flow"])
def test_steps_of_a_flow_are_equal_and_none_is_wasted(sampler: str) -> None:
    times = make_sampler(sampling(sampler), objective_settings(OBJECTIVES["flow"]), torch.device("cpu")).network_times
    distinct = torch.cat([times.unique(), torch.zeros(1)]).sort().values / TIME_SCALE
    assert distinct.diff().tolist() == pytest.approx([0.1] * 10, abs=2e-3)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_authors_formula(network: UViT, eta: float) -> None:
    """x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s - sigma^2) eps + sigma z, x_0 clipped, from T - 1 down by T / steps."""
    steps, alpha_bar = 10, ddpm(1000, "linear", "epsilon").alpha_bar(torch.arange(1000))
    found = sample_tokens(network, LINEAR, sampling("ddim", eta, steps), [generator("cpu", 7)])
    random = generator("cpu", 7)
    x = torch.randn(1, 16, 4, generator=random)
    times = list(range(999, -1, -1000 // steps))
    for t, s in zip(times, [*times[1:], None], strict=True):
        abar_t = alpha_bar[t]
        abar_s = alpha_bar[s] if s is not None else torch.tensor(1.0)
        sigma = eta * ((1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s)).sqrt()  # Song et al. 2021, eq. 16
        eps = network(x, torch.tensor([t]))
        x_0 = ((x - (1 - abar_t).sqrt() * eps) / abar_t.sqrt()).clamp(-1, 1)
        z = torch.randn(x.shape, generator=random) if eta else torch.zeros(())
        x = abar_s.sqrt() * x_0 + (1 - abar_s - sigma**2).sqrt() * eps + sigma * z
    torch.testing.assert_close(found, x.detach(), atol=1e-4, rtol=1e-4)


def test_ddpm_is_the_ancestral_sampler(network: UViT) -> None:
    """x_{t-1} ~ N(posterior mean of x_{t-1} given x_t and x_0, its variance), Ho et al. 2020, eq. 7; x_0 clipped."""
    settings = objective_settings(OBJECTIVES["linear, epsilon"] | {"num_train_timesteps": 50})
    found = sample_tokens(network, settings, sampling("ddpm", steps=50), [generator("cpu", 7)])
    random = generator("cpu", 7)
    x = torch.randn(1, 16, 4, generator=random)
    # abar[t + 1] is that of step t
    abar = torch.cat([torch.ones(1), ddpm(50, "linear", "epsilon").alpha_bar(torch.arange(50))])
    for t in range(49, -1, -1):
        now, before = abar[t + 1], abar[t]
        beta = 1 - now / before
        eps = network(x, torch.tensor([t]))
        x_0 = ((x - (1 - now).sqrt() * eps) / now.sqrt()).clamp(-1, 1)
        x = (before.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - before) * x) / (1 - now)
        if t:
            x = x + ((1 - before) / (1 - now) * beta).sqrt() * torch.randn(x.shape, generator=random)
    torch.testing.assert_close(found, x.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("raw", "sampler", "eta"), CASES)
def test_an_image_depends_on_its_seed_and_not_on_the_batch(
    network: UViT, raw: dict[str, Any], sampler: str, eta: float
) -> None:
    settings = objective_settings(raw)
    with torch.no_grad():
        network.head.weight.mul_(0.1)  # of samples that saturate no pixel, whatever the network predicts
    one, many = (
        sample_images(network, settings, sampling(sampler, eta, batch_size=size), range(6), seed=3) for size in (1, 4)
    )
    assert one.shape == (6, 1, 8, 8)
    assert one.dtype == np.uint8
    assert np.abs(one.astype(int) - many.astype(int)).max() <= 1  # rounding of matrix products differs with the batch
    assert len({image.tobytes() for image in one}) == 6
    assert not np.array_equal(one, sample_images(network, settings, sampling(sampler, eta), range(6), seed=4))


@pytest.fixture
def labelled() -> UViT:
    """With two classes, and labels that matter."""
    network = UViT(image_size=(8, 8), patch_size=2, in_channels=1, embed_dim=16, depth=3, num_heads=2, num_classes=2)
    with torch.no_grad():
        network.label_embed.weight.mul_(50)
    return network


def test_labels_reach_their_images(labelled: UViT) -> None:
    network = labelled
    labels = torch.tensor([0, 0, 1, 1, 0])
    mixed = sample_images(network, LINEAR, sampling("ddim", batch_size=2), range(5), 0, labels)
    zeros = sample_images(network, LINEAR, sampling("ddim", batch_size=2), range(5), 0, torch.zeros_like(labels))
    same = [np.array_equal(a, b) for a, b in zip(mixed, zeros, strict=True)]
    assert same == [True, True, False, False, True]


@pytest.mark.parametrize(("raw", "sampler", "eta"), CASES)
def test_guidance_by_1_is_sampling_with_labels_and_by_0_without(
    labelled: UViT, raw: dict[str, Any], sampler: str, eta: float
) -> None:
    objective, labels = objective_settings(raw), torch.tensor([0, 1, 1])
    passes: list[int] = []
    labelled.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))

    def sampled(scale: float, labels: Tensor) -> Tensor:
        passes.clear()
        settings = sampling(sampler, eta, scale=scale)
        return sample_tokens(labelled, objective, settings, [generator("cpu", i) for i in "abc"], labels)

    sampled(1.0, labels)
    assert set(passes) == {3}, "no second pass"
    without = sampled(1.0, torch.full_like(labels, labelled.no_label))
    torch.testing.assert_close(sampled(0.0, labels), without, rtol=1e-4, atol=1e-4)
    assert set(passes) == {6}, "both in one batch"
    assert not torch.allclose(without, sampled(1.0, labels), atol=1e-3)


def test_a_step_is_linear_in_the_scale_of_guidance(labelled: UViT) -> None:
    x_t, t, labels = torch.randn(3, 16, 4), torch.tensor([5, 50, 95]), torch.tensor([0, 1, 0])
    by = {scale: guided_prediction(labelled, x_t, t, labels, scale) for scale in (0.0, 1.0, 2.5)}
    torch.testing.assert_close(by[1.0], labelled(x_t, t, labels=labels))
    torch.testing.assert_close(by[0.0], labelled(x_t, t, labels=torch.full((3,), labelled.no_label)))
    torch.testing.assert_close(by[2.5], by[0.0] + 2.5 * (by[1.0] - by[0.0]), rtol=1e-4, atol=1e-5)


def test_guiding_v_is_guiding_epsilon(labelled: UViT) -> None:
    schedule = DDPMScheduler(100, beta_schedule="linear")
    x_t, t, labels = torch.randn(3, 16, 4), torch.tensor([5, 50, 95]), torch.tensor([0, 1, 0])

    class Epsilon(UViT):  # type: ignore[misc]  # diffusers ships no types
        def forward(self, x_t: Tensor, t: Tensor, *rest: Any, **named: Any) -> Tensor:
            abar = schedule.alphas_cumprod[t][:, None, None]
            return abar.sqrt() * super().forward(x_t, t, *rest, **named) + (1 - abar).sqrt() * x_t

    epsilon = Epsilon(**labelled.config)
    epsilon.load_state_dict(labelled.state_dict())
    abar = schedule.alphas_cumprod[t][:, None, None]
    v = guided_prediction(labelled, x_t, t, labels, 3.0)
    expected = guided_prediction(epsilon, x_t, t, labels, 3.0)
    torch.testing.assert_close(abar.sqrt() * v + (1 - abar).sqrt() * x_t, expected, rtol=1e-4, atol=1e-4)


def test_guidance_without_labels_is_refused(network: UViT) -> None:
    with pytest.raises(ValueError, match="scale=2 without labels; allowed: 1"):
        guided_prediction(network, torch.randn(1, 16, 4), torch.tensor([5]), None, 2.0)


def test_pixels_are_clipped_and_rounded() -> None:
    assert to_pixels(torch.tensor([-2.0, -1.0, 0.0, 0.999, 2.0])).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_noise_between_two_has_their_spread(share: float) -> None:
    first, second = torch.randn(2, 64, 48, generator=generator("cpu", 3))
    between = slerp(first, second, share)
    assert between.std().item() == pytest.approx(1, abs=0.03)  # on a straight line 0.71 in the middle
    if share in (0, 1):
        torch.testing.assert_close(between, second if share else first)
    torch.testing.assert_close(slerp(first, first, share), first)
