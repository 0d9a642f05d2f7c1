import pytest
import torch
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from maskdm.config.masks import PatchMask
from maskdm.methods.masks import draw_ids_keep
from maskdm.networks.patches import gather_tokens
from maskdm.networks.uvit import UViT
from maskdm.runtime.seeding import generator
from maskdm.training.objective import HeldoutLoss, denoising_loss, epsilon_loss, min_snr_weights, noise_schedule

SCHEDULES = ("linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction")


class Oracle(nn.Module):
    """Knows the noise, and answers in the schedule's terms, `error` away from the truth in epsilon."""

    def __init__(self, schedule: object, x_0: Tensor, noise: Tensor, error: float = 0.0) -> None:
        super().__init__()
        self.schedule, self.x_0, self.noise, self.error = schedule, x_0, noise, error

    def forward(self, x_t: Tensor, t: Tensor, ids_keep: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        if self.schedule.config.prediction_type == "epsilon":  # type: ignore[attr-defined]
            return self.noise + self.error
        abar = self.schedule.alphas_cumprod[t][:, None, None]  # type: ignore[attr-defined]
        # v of the x_0 that goes with the wrong epsilon: x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps
        eps = self.noise + self.error
        x_0 = (x_t - (1 - abar).sqrt() * eps) / abar.sqrt()
        return abar.sqrt() * eps - (1 - abar).sqrt() * x_0


def batch(batch_size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return torch.rand(batch_size, 16, 4) * 2 - 1, torch.randint(90, (batch_size,)), torch.randn(batch_size, 16, 4)


@pytest.mark.parametrize("beta_schedule", SCHEDULES)
def test_the_schedule_is_the_papers(beta_schedule: str) -> None:
    T = 1000
    steps = torch.arange(T + 1, dtype=torch.float64)
    if beta_schedule == "linear":  # Ho et al. 2020
        expected = torch.cumprod(1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64), 0)
    else:  # Nichol & Dhariwal 2021, eq. 17
        f = torch.cos((steps / T + 0.008) / 1.008 * torch.pi / 2) ** 2
        expected = torch.cumprod(1 - (1 - f[1:] / f[:-1]).clamp(max=0.999), 0)
    found = noise_schedule(T, beta_schedule, "epsilon").alphas_cumprod
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("beta_schedule", SCHEDULES)
def test_a_perfect_denoiser_has_no_loss_and_a_wrong_one_its_error_in_epsilon(
    beta_schedule: str, prediction_type: str
) -> None:
    schedule = noise_schedule(100, beta_schedule, prediction_type)
    x_0, t, noise = batch()
    perfect = denoising_loss(Oracle(schedule, x_0, noise), schedule, x_0, t, noise)
    torch.testing.assert_close(perfect, torch.zeros(4), atol=1e-8, rtol=0)
    wrong = denoising_loss(Oracle(schedule, x_0, noise, error=0.5), schedule, x_0, t, noise)
    torch.testing.assert_close(epsilon_loss(schedule, wrong, t), torch.full((4,), 0.25), rtol=1e-3, atol=0)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("beta_schedule", SCHEDULES)
def test_min_snr_weighs_the_error_in_x_0_whatever_the_network_predicts(
    beta_schedule: str, prediction_type: str
) -> None:
    schedule, gamma = noise_schedule(100, beta_schedule, prediction_type), 5.0
    t = torch.arange(100)
    snr = compute_snr(schedule, t)
    abar = schedule.alphas_cumprod
    # x_t given, x_0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar) = sqrt(abar) x_t - sqrt(1 - abar) v
    error_in_x_0 = (1 - abar) / abar if prediction_type == "epsilon" else 1 - abar
    expected = snr.clamp(max=gamma) * error_in_x_0
    torch.testing.assert_close(min_snr_weights(schedule, t, gamma), expected, rtol=1e-4, atol=0)


def gradients(network: UViT, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_masked_loss_with_everything_kept_in_any_order_is_the_dense_loss(
    network: UViT, prediction_type: str
) -> None:
    schedule = noise_schedule(100, "linear", prediction_type)
    x_0, t, noise = batch()
    ids_keep = torch.stack([torch.arange(16), *(torch.randperm(16) for _ in range(3))])
    dense = denoising_loss(network, schedule, x_0, t, noise)
    shuffled = gather_tokens(x_0, ids_keep), t, gather_tokens(noise, ids_keep)
    masked = denoising_loss(network, schedule, *shuffled, ids_keep)
    torch.testing.assert_close(masked, dense)
    torch.testing.assert_close(gradients(network, masked.mean()), gradients(network, dense.mean()))


def test_the_gradient_reaches_the_kept_positions_and_all_that_tokens_share(network: UViT) -> None:
    schedule = noise_schedule(100, "linear", "epsilon")
    x_0, t, noise = batch()
    ids_keep = torch.tensor([[0, 1], [1, 5], [5, 9], [9, 0]])  # an own mask for each image
    loss = denoising_loss(network, schedule, gather_tokens(x_0, ids_keep), t, gather_tokens(noise, ids_keep), ids_keep)
    found = gradients(network, loss[:2].sum())
    assert found["pos_embed"].abs().sum(1).nonzero().ravel().tolist() == [0, 1, 5]
    assert found.keys() == dict(network.named_parameters()).keys()
    assert all(gradient.any() for gradient in found.values())


def test_a_removed_token_changes_neither_loss_nor_gradient(network: UViT) -> None:
    schedule = noise_schedule(100, "linear", "epsilon")
    x_0, t, noise = batch()
    ids_keep = draw_ids_keep(PatchMask(strategy="patch", ratio=0.75), network.grid, 4, generator("cpu", 0))
    removed = torch.ones(4, 16, dtype=torch.bool).scatter_(1, ids_keep, False)
    results = []
    for pixels in (x_0, torch.where(removed[:, :, None], 100.0, x_0)):
        visible = gather_tokens(pixels, ids_keep)
        loss = denoising_loss(network, schedule, visible, t, gather_tokens(noise, ids_keep), ids_keep).mean()
        results.append([loss.detach(), *gradients(network, loss).values()])
    assert len(results[0]) == 1 + len(list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_heldout_loss_is_repeatable_and_covers_the_schedule_evenly(network: UViT) -> None:
    schedule = noise_schedule(100, "linear", "v_prediction")
    x_0 = torch.rand(50, 16, 4) * 2 - 1
    measured = [HeldoutLoss(schedule, x_0, None, generator("cpu", 0), batch_size=size) for size in (7, 50)]
    assert measured[0].t.tolist() == list(range(1, 100, 2))
    values = [loss(network) for loss in measured]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert measured[0](network) == values[0]
