"""The held-out loss: how well a network denoises images it never saw, on one scale for all objectives."""

import numpy as np
import torch
from torch import Tensor, nn

from maskdm.runtime.processes import ALONE, Processes
from maskdm.training.objective import Objective, cosine_schedule, denoising_loss


class HeldoutLoss:
    """The error in epsilon on fixed held-out images, each with a fixed noise level and fixed noise: nearly noise-free.

    Whatever the objective, the levels are those of the cosine schedule, at steps that are spread evenly instead of
    drawn, which removes most of the estimate's variance.

    Args:
        objective: the training's.
        x_0: clean tokens `[n, num_tokens, token_dim]` in [-1, 1].
        labels: classes `[n]`, for a network with classes.
        generator: draws the noise, once.
        batch_size: images a forward pass.
        processes: those that share the images.
    """

    def __init__(
        self,
        objective: Objective,
        x_0: Tensor,
        labels: Tensor | None,
        generator: torch.Generator,
        batch_size: int,
        processes: Processes = ALONE,
    ) -> None:
        self.objective, self.batch_size, self.processes = objective, batch_size, processes
        noise = torch.randn(x_0.shape, generator=generator, device=generator.device)
        t = objective.times_at(even_levels(len(x_0), objective.num_train_timesteps).to(x_0.device))
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
            t = self.t[part]
            loss = denoising_loss(network, self.objective, self.x_0[part], t, self.noise[part], labels=labels)
            losses.append(self.objective.epsilon_error(loss, t))
        return float(self.processes.gather(torch.cat(losses).numpy(force=True)).mean(dtype=np.float64))


def even_levels(count: int, num_train_timesteps: int) -> Tensor:
    """alpha_bar of the cosine schedule at the centres of `count` equal parts of its steps, `[count]`, falling."""
    odd = 2 * torch.arange(count) + 1
    return cosine_schedule(num_train_timesteps)[odd * num_train_timesteps // (2 * count)]
