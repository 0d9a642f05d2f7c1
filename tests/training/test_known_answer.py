"""Training on data whose best denoiser is known: Gaussian images, where it is linear in the tokens that it is given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskdm.config.masks import Mask, PatchMask
from maskdm.config.method import Group
from maskdm.config.recipe import Optimisation
from maskdm.datasets.prepared import PreparedData
from maskdm.methods.drop import DROP
from maskdm.methods.masks import draw_ids_keep
from maskdm.methods.method import Trainee
from maskdm.networks.patches import gather_tokens
from maskdm.networks.uvit import UViT
from maskdm.runtime.seeding import generator
from maskdm.training.loop import PhaseTrainer
from maskdm.training.objective import Coefficients, Objective, cosine_schedule, denoising_loss, make_objective
from maskdm.training.plan import PhasePlan, group_flops
from maskdm.training.views import to_unit_range
from tests.denoisers import OBJECTIVES, objective_settings, told_mix

SIDE = 3  # tokens of one pixel
NUM_TOKENS = SIDE * SIDE
STEPS, BATCH_SIZE = 1000, 64
CLOSE = 0.08  # how far above the optimum a trained network's loss may lie, as a share of it; found: 0.02 to 0.07
LEVELS = cosine_schedule(1000)[[200, 300]]  # where noise and data are of one size: places and neighbours tell most
EPSILON = "squaredcos_cap_v2, epsilon"
V_PREDICTION = "squaredcos_cap_v2, v_prediction"
KINDS = (EPSILON, V_PREDICTION, "squaredcos_cap_v2, sample", "vp, v_prediction", "flow", "edm")
HALF = PatchMask(strategy="patch", ratio=0.5)


def gaussian() -> tuple[np.ndarray, np.ndarray]:
    """Mean `[N]`, another for each place, and covariance `[N, N]`, largest between neighbours; hardly ever beyond 1."""
    place = np.stack(np.divmod(np.arange(NUM_TOKENS), SIDE), axis=1)
    distance = ((place[:, None] - place) ** 2).sum(2)
    mean = np.random.default_rng(0).uniform(-0.2, 0.2, NUM_TOKENS)
    return mean, 0.2**2 * (0.9 * np.exp(-distance / 6) + 0.1 * np.eye(NUM_TOKENS))


def draw_images(count: int, seed: int) -> np.ndarray:
    """uint8 `[count, 1, SIDE, SIDE]`."""
    values = np.random.default_rng(seed).multivariate_normal(*gaussian(), count)
    return ((values + 1) * 127.5).round().clip(0, 255).astype(np.uint8).reshape(count, 1, SIDE, SIDE)


class BestDenoiser(nn.Module):
    """What no network can beat on x_0 ~ N(mean, covariance), knowing the kept tokens alone: the conditional mean.

    With x_t = a x_0 + b eps: E[eps | x_t] = b (a^2 C + b^2 I)^-1 (x_t - a m), with the mean m and the covariance C of
    the kept tokens. E[x_0 | x_t] is then (x_t - b E[eps | x_t]) / a.
    """

    def __init__(self, objective: Objective, mean: np.ndarray, covariance: np.ndarray) -> None:
        super().__init__()
        rounding = (2 / 255) ** 2 / 12  # the variance that 8-bit pixels add: 4e-6
        self.objective, self.mean = objective, torch.from_numpy(mean)
        self.covariance = torch.from_numpy(covariance) + rounding * torch.eye(len(mean), dtype=torch.double)

    def forward(
        self, x_t: Tensor, told: Tensor, ids_keep: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        ids = torch.arange(NUM_TOKENS).expand(len(x_t), -1) if ids_keep is None else ids_keep
        mix = told_mix(self.objective, told)
        centred = x_t - mix.a * self.mean[ids][..., None]
        eps = mix.b * torch.linalg.solve(self.noisy_covariance(mix, ids), centred)
        return mix.c * (x_t - mix.b * eps) / mix.a + mix.d * eps

    def loss(self, t: Tensor, ids: Tensor) -> float:
        """Its mean squared error, in closed form: in eps 1 - b^2 tr((a^2 C + b^2 I)^-1) / S."""
        mix = told_mix(self.objective, self.objective.network_time(t))
        inverse = torch.linalg.inv(self.noisy_covariance(mix, ids))
        epsilon = 1 - mix.b.square().squeeze() * inverse.diagonal(dim1=1, dim2=2).mean(1)
        return (epsilon / self.objective.epsilon_error(torch.ones(len(t)), t)).mean().item()

    def noisy_covariance(self, mix: Coefficients, ids: Tensor) -> Tensor:
        return mix.a**2 * self.covariance[ids[:, :, None], ids[:, None, :]] + mix.b**2 * torch.eye(ids.shape[1])


def without_places() -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the tokens in random order: what a denoiser knows that is not told the places."""
    mean, covariance = gaussian()
    second = covariance + np.outer(mean, mean)
    variance, between = np.trace(second) / NUM_TOKENS, (second.sum() - np.trace(second)) / (NUM_TOKENS**2 - NUM_TOKENS)
    shuffled = between + (variance - between) * np.eye(NUM_TOKENS) - mean.mean() ** 2
    return np.full(NUM_TOKENS, mean.mean()), shuffled


def without_neighbours() -> tuple[np.ndarray, np.ndarray]:
    """What a denoiser knows that sees one token at a time, and its place."""
    mean, covariance = gaussian()
    return mean, np.diag(np.diag(covariance))


def new_network() -> UViT:
    return UViT(image_size=(SIDE, SIDE), patch_size=1, in_channels=1, embed_dim=32, depth=3, num_heads=2)


def train(objective: Objective, mask: Mask | None, folder: Path) -> UViT:
    """The averaged weights of one phase of the real trainer."""
    settings = Optimisation(
        optimizer="adamw",
        lr=3e-3,
        betas=(0.9, 0.99),
        weight_decay=0.0,
        grad_clip=1.0,
        warmup=0.05,
        decay=0.5,
        ema_horizon=0.05,
        hflip=0.0,
        min_snr_gamma=None,
    )
    plan = PhasePlan(
        stage="pretrain",
        index=0,
        mask=mask,
        positions=True,
        method=DROP,
        removed=0.0,
        batch_size=BATCH_SIZE,
        steps=STEPS,
        optimisation=settings,
        flops_per_image=group_flops(Trainee(new_network(), DROP), Group(1, mask)),
        optimizer_flops=0.0,
        start_images=0,
        start_flops=0.0,
        heldout_steps=(STEPS,),
        snapshot_steps={},
        handover=None,
        data_set=None,
        schedule_offset=0.0,
        schedule_steps=STEPS,
    )
    data = PreparedData(draw_images(50_000, seed=1), None, {"train": 50_000})
    return PhaseTrainer(new_network(), objective, data, plan, lambda _: 0.0, 0, folder, lambda _: None).run().network


class Judge:
    """Mean losses of denoisers at one noise level, on the same new images, masks and noise."""

    def __init__(self, objective: Objective, mask: Mask | None, level: Tensor, count: int = 4000) -> None:
        random = generator("cpu", 0, "judge", str(level.item()))
        x_0 = to_unit_range(torch.from_numpy(draw_images(count, seed=2))).reshape(count, NUM_TOKENS, 1)
        self.objective, self.t = objective, objective.times_at(level.expand(count))
        self.ids = None if mask is None else draw_ids_keep(mask, (SIDE, SIDE), count, random)
        self.x_0 = x_0 if self.ids is None else gather_tokens(x_0, self.ids)
        self.noise = torch.randn(self.x_0.shape, generator=random)

    @torch.no_grad()
    def __call__(self, denoiser: nn.Module, told: Tensor | None = None) -> float:
        """The loss of `denoiser`; `told`: the places that it is told, if they are not the true ones."""
        told = self.ids if told is None else told
        return denoising_loss(denoiser, self.objective, self.x_0, self.t, self.noise, told).mean().item()


@pytest.mark.parametrize(
    ("kind", "mask"),
    [
        ("flow", HALF),
        *(
            pytest.param(kind, mask, marks=pytest.mark.slow)
            for kind, mask in (
                *((EPSILON, None), (EPSILON, HALF), (V_PREDICTION, None), (V_PREDICTION, HALF)),
                *(("squaredcos_cap_v2, sample", HALF), ("edm", HALF)),
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "masked" if value else "dense",
)
def test_a_trained_network_comes_close_to_the_best_denoiser(kind: str, mask: Mask | None, tmp_path: Path) -> None:
    objective = make_objective(objective_settings(OBJECTIVES[kind]))
    untrained = new_network()
    network = train(objective, mask, tmp_path)
    best = BestDenoiser(objective, *gaussian())
    for level in LEVELS:
        loss = Judge(objective, mask, level)
        optimum = loss(best)
        blind = BestDenoiser(objective, *without_places()), BestDenoiser(objective, *without_neighbours())
        excess = loss(network) / optimum - 1
        # Not below it either: that would be a network that sees what the mask removed.
        assert -0.005 < excess < CLOSE
        assert all(3 * excess < loss(other) / optimum - 1 for other in (untrained, *blind))
        if loss.ids is not None:  # a network that does not heed places would not mind false ones
            assert loss(network, told=loss.ids.flip(1)) > loss(blind[0])


@pytest.mark.parametrize("mask", [None, HALF], ids=["dense", "masked"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_best_denoiser_has_the_loss_of_the_closed_form(kind: str, mask: Mask | None) -> None:
    objective = make_objective(objective_settings(OBJECTIVES[kind]))
    best = BestDenoiser(objective, *gaussian())
    for level in LEVELS:
        loss = Judge(objective, mask, level)
        ids = torch.arange(NUM_TOKENS).expand(len(loss.t), -1) if loss.ids is None else loss.ids
        assert loss(best) == pytest.approx(best.loss(loss.t, ids), rel=0.03)


def test_a_removed_token_is_worth_something() -> None:
    """Else the loss could not tell a masked network from one that sees everything."""
    objective = make_objective(objective_settings(OBJECTIVES[EPSILON]))
    best = BestDenoiser(objective, *gaussian())
    for level in LEVELS:
        masked, dense = Judge(objective, HALF, level), Judge(objective, None, level)
        assert masked(best) > 1.1 * dense(best)
