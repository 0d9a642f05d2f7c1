from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskdm.config.params import Sampling
from maskdm.evaluation.sampling import guided_prediction, sample_images, sample_tokens, to_pixels
from maskdm.networks.uvit import UViT
from maskdm.runtime.seeding import generator
from maskdm.training.objective import noise_schedule

ALL_SAMPLERS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0), ("dpm_solver", 0.0), ("unipc", 0.0)]


def sampling(sampler: str, eta: float = 0.0, steps: int = 10, batch_size: int = 4, scale: float = 1.0) -> Sampling:
    settings = {"sampler": sampler, "num_inference_steps": steps, "eta": eta, "batch_size": batch_size}
    return Sampling.model_validate(settings | {"guidance_scale": scale})


class Knows(nn.Module):
    """The optimal denoiser of data that is one image: it answers as if x_0 were that image."""

    num_tokens, token_dim = 16, 4

    def __init__(self, x_0: Tensor, schedule: Any) -> None:
        super().__init__()
        self.x_0, self.schedule = nn.Parameter(x_0), schedule

    def forward(self, x_t: Tensor, t: Tensor, ids_keep: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        abar = self.schedule.alphas_cumprod[t][:, None, None]
        eps = (x_t - abar.sqrt() * self.x_0) / (1 - abar).sqrt()
        if self.schedule.config.prediction_type == "epsilon":
            return eps
        return abar.sqrt() * eps - (1 - abar).sqrt() * self.x_0


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("sampler", "eta"), ALL_SAMPLERS)
def test_a_perfect_denoiser_returns_the_image(sampler: str, eta: float, prediction_type: str) -> None:
    schedule = noise_schedule(1000, "linear", prediction_type)
    x_0 = torch.rand(16, 4) * 1.8 - 0.9
    denoiser: Any = Knows(x_0, schedule)
    tokens = sample_tokens(denoiser, schedule, sampling(sampler, eta, 20), [generator("cpu", i) for i in "ab"])
    torch.testing.assert_close(tokens, x_0.expand(2, -1, -1), atol=0.02, rtol=0)


def test_gaussian_data_keeps_its_mean_and_spread() -> None:
    """A case with a known answer: for x_0 ~ N(mean, s^2) the optimal denoiser is linear (Wiener's)."""
    mean, spread = 0.2, 0.3
    schedule = noise_schedule(1000, "linear", "epsilon")

    class Wiener(Knows):
        def forward(self, x_t: Tensor, t: Tensor, *_: Any, **__: Any) -> Tensor:
            abar = self.schedule.alphas_cumprod[t][:, None, None]
            return (1 - abar).sqrt() * (x_t - abar.sqrt() * mean) / (abar * spread**2 + 1 - abar)

    denoiser: Any = Wiener(torch.zeros(16, 4), schedule)
    generators = [generator("cpu", i) for i in range(200)]
    for sampler, eta, steps in (("ddim", 0.0, 250), ("ddpm", 0.0, 250), ("dpm_solver", 0.0, 50), ("unipc", 0.0, 50)):
        tokens = sample_tokens(denoiser, schedule, sampling(sampler, eta, steps), generators)
        assert tokens.mean().item() == pytest.approx(mean, abs=0.01), sampler
        assert tokens.std().item() == pytest.approx(spread, abs=0.02), sampler


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_authors_formula(network: UViT, eta: float) -> None:
    """x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s - sigma^2) eps + sigma z, x_0 clipped, from T - 1 down by T / steps."""
    schedule, steps = noise_schedule(1000, "linear", "epsilon"), 10
    found = sample_tokens(network, schedule, sampling("ddim", eta, steps), [generator("cpu", 7)])
    random = generator("cpu", 7)
    x = torch.randn(1, 16, 4, generator=random)
    times = list(range(999, -1, -1000 // steps))
    for t, s in zip(times, [*times[1:], None], strict=True):
        abar_t = schedule.alphas_cumprod[t]
        abar_s = schedule.alphas_cumprod[s] if s is not None else torch.tensor(1.0)
        sigma = eta * ((1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s)).sqrt()  # Song et al. 2021, eq. 16
        eps = network(x, torch.tensor([t]))
        x_0 = ((x - (1 - abar_t).sqrt() * eps) / abar_t.sqrt()).clamp(-1, 1)
        z = torch.randn(x.shape, generator=random) if eta else torch.zeros(())
        x = abar_s.sqrt() * x_0 + (1 - abar_s - sigma**2).sqrt() * eps + sigma * z
    torch.testing.assert_close(found, x.detach(), atol=1e-4, rtol=1e-4)


def test_ddpm_is_the_ancestral_sampler(network: UViT) -> None:
    """x_{t-1} ~ N(posterior mean of x_{t-1} given x_t and x_0, its variance), Ho et al. 2020, eq. 7; x_0 clipped."""
    schedule = noise_schedule(50, "linear", "epsilon")
    found = sample_tokens(network, schedule, sampling("ddpm", steps=50), [generator("cpu", 7)])
    random = generator("cpu", 7)
    x = torch.randn(1, 16, 4, generator=random)
    abar = torch.cat([torch.ones(1), schedule.alphas_cumprod])  # abar[t + 1] is that of step t
    for t in range(49, -1, -1):
        now, before = abar[t + 1], abar[t]
        beta = 1 - now / before
        eps = network(x, torch.tensor([t]))
        x_0 = ((x - (1 - now).sqrt() * eps) / now.sqrt()).clamp(-1, 1)
        x = (before.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - before) * x) / (1 - now)
        if t:
            x = x + ((1 - before) / (1 - now) * beta).sqrt() * torch.randn(x.shape, generator=random)
    torch.testing.assert_close(found, x.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("sampler", "eta"), ALL_SAMPLERS)
def test_an_image_depends_on_its_seed_and_not_on_the_batch(network: UViT, sampler: str, eta: float) -> None:
    schedule = noise_schedule(100, "squaredcos_cap_v2", "v_prediction")
    one, many = (
        sample_images(network, schedule, sampling(sampler, eta, batch_size=size), range(6), seed=3) for size in (1, 4)
    )
    assert one.shape == (6, 1, 8, 8)
    assert one.dtype == np.uint8
    assert np.abs(one.astype(int) - many.astype(int)).max() <= 1  # rounding of matrix products differs with the batch
    assert len({image.tobytes() for image in one}) == 6
    assert not np.array_equal(one, sample_images(network, schedule, sampling(sampler, eta), range(6), seed=4))


@pytest.fixture
def labelled() -> UViT:
    """With two classes, and labels that matter."""
    network = UViT(image_size=(8, 8), patch_size=2, in_channels=1, embed_dim=16, depth=3, num_heads=2, num_classes=2)
    with torch.no_grad():
        network.label_embed.weight.mul_(50)
    return network


def test_labels_reach_their_images(labelled: UViT) -> None:
    network = labelled
    schedule = noise_schedule(100, "linear", "epsilon")
    labels = torch.tensor([0, 0, 1, 1, 0])
    mixed = sample_images(network, schedule, sampling("ddim", batch_size=2), range(5), 0, labels)
    zeros = sample_images(network, schedule, sampling("ddim", batch_size=2), range(5), 0, torch.zeros_like(labels))
    same = [np.array_equal(a, b) for a, b in zip(mixed, zeros, strict=True)]
    assert same == [True, True, False, False, True]


@pytest.mark.parametrize(("sampler", "eta"), ALL_SAMPLERS)
def test_guidance_by_1_is_sampling_with_labels_and_by_0_without(labelled: UViT, sampler: str, eta: float) -> None:
    schedule, labels = noise_schedule(100, "squaredcos_cap_v2", "v_prediction"), torch.tensor([0, 1, 1])
    passes: list[int] = []
    labelled.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))

    def sampled(scale: float, labels: Tensor) -> Tensor:
        passes.clear()
        settings = sampling(sampler, eta, scale=scale)
        return sample_tokens(labelled, schedule, settings, [generator("cpu", i) for i in "abc"], labels)

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
    schedule = noise_schedule(100, "linear", "v_prediction")
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
