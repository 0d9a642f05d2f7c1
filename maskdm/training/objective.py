"""The noise schedule and the one denoising loss that pre-training, fine-tuning and the baseline share.

The schedule is diffusers' `DDPMScheduler`: the same object adds noise in training and configures the samplers.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from maskdm.runtime.processes import ALONE, Processes


def noise_schedule(num_train_timesteps: int, beta_schedule: str, prediction_type: str) -> DDPMScheduler:
    """`beta_schedule`: `linear` or `squaredcos_cap_v2` (cosine); `prediction_type`: `epsilon` or `v_prediction`."""
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps, beta_schedule=beta_schedule, prediction_type=prediction_type
    )


def denoising_loss(
    network: Callable[..., Tensor],
    schedule: DDPMScheduler,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    ids_keep: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Mean squared error of each image's prediction: DSM with all tokens, MDSM with the kept ones (PAPER, Objectives).

    Nothing here depends on the mask: masked, `x_0` and `noise` hold the visible tokens alone (xhat_0 and epshat of the
    paper), and `ids_keep` tells the network where they stand.

    Args:
        x_0: clean tokens in [-1, 1], `[B, S, token_dim]`.
        t: time steps, int64 `[B]`.
        noise: standard normal, like `x_0`.
        ids_keep: places of the tokens, `[B, S]`; None: all tokens.
        labels: classes, `[B]`.

    Returns:
        The loss of each image, `[B]`, in float32.
    """
    x_t = schedule.add_noise(x_0, noise, t)  # sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps
    target = diffusion_target(schedule, x_0, noise, t)
    prediction = network(x_t, t, ids_keep, labels)
    return F.mse_loss(prediction.float(), target, reduction="none").mean(dim=(1, 2))


def diffusion_target(schedule: DDPMScheduler, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network should predict, like `x_0`: the noise or the velocity."""
    v_prediction = schedule.config.prediction_type == "v_prediction"
    return schedule.get_velocity(x_0, noise, t) if v_prediction else noise


def epsilon_loss(schedule: DDPMScheduler, loss: Tensor, t: Tensor) -> Tensor:
    """The epsilon error that belongs to a denoising loss, `[B]`: makes losses of both prediction types comparable.

    With v = sqrt(abar) eps - sqrt(1 - abar) x_0 and x_t given, eps = sqrt(abar) v + sqrt(1 - abar) x_t, so an error in
    v is an error of sqrt(abar) times it in eps (Salimans & Ho 2022).
    """
    if schedule.config.prediction_type == "epsilon":
        return loss
    return schedule.alphas_cumprod.to(loss.device)[t] * loss


def min_snr_weights(schedule: DDPMScheduler, t: Tensor, gamma: float) -> Tensor:
    """Weights of the denoising loss at time steps `t`, `[B]` (min-SNR-gamma: Hang et al. 2023, arXiv 2303.09556).

    They weigh the error in x_0 by min(SNR, gamma) with SNR = abar / (1 - abar); one in epsilon is SNR times that in
    x_0, one in v SNR + 1 times.
    """
    signal = schedule.alphas_cumprod.to(t.device)[t]
    snr = signal / (1 - signal)
    v_prediction = schedule.config.prediction_type == "v_prediction"
    return snr.clamp(max=gamma) / (snr + 1 if v_prediction else snr)


class HeldoutLoss:
    """The denoising loss on fixed held-out images, each with a fixed time step and fixed noise: nearly noise-free.

    Time steps are spread evenly over the schedule instead of drawn, which removes most of the estimate's variance.

    Args:
        schedule: the training's noise schedule.
        x_0: clean tokens `[n, num_tokens, token_dim]` in [-1, 1].
        labels: classes `[n]`, for a network with classes.
        generator: draws the noise, once.
        batch_size: images a forward pass.
        processes: those that share the images.
    """

    def __init__(
        self,
        schedule: DDPMScheduler,
        x_0: Tensor,
        labels: Tensor | None,
        generator: torch.Generator,
        batch_size: int = 256,
        processes: Processes = ALONE,
    ) -> None:
        self.schedule, self.batch_size, self.processes = schedule, batch_size, processes
        noise = torch.randn(x_0.shape, generator=generator, device=generator.device)
        odd = 2 * torch.arange(len(x_0), device=x_0.device) + 1  # the centres of equal parts of the schedule
        t = odd * schedule.config.num_train_timesteps // (2 * len(x_0))
        own = processes.share(len(x_0), "heldout.images")
        self.x_0, self.t, self.noise = x_0[own], t[own], noise[own].to(x_0.device)
        self.labels = None if labels is None else labels[own]

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> float:
        """The mean epsilon error of `network` with all tokens visible."""
        losses = []
        for start in range(0, len(self.x_0), self.batch_size):
            part = slice(start, start + self.batch_size)
            labels = None if self.labels is None else self.labels[part]
            loss = denoising_loss(network, self.schedule, self.x_0[part], self.t[part], self.noise[part], labels=labels)
            losses.append(epsilon_loss(self.schedule, loss, self.t[part]))
        return float(self.processes.gather(torch.cat(losses).numpy(force=True)).mean(dtype=np.float64))
