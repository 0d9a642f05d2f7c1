"""Images from a network: diffusers' samplers on patch tokens, one seed per image whatever the batch size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor
from tqdm import tqdm

from maskdm.config.params import Sampling
from maskdm.networks.network import Network
from maskdm.networks.patches import unpatchify
from maskdm.runtime.progress import bar_interval
from maskdm.runtime.seeding import generator


def make_sampler(settings: Sampling, schedule: DDPMScheduler, device: torch.device) -> Any:
    """The diffusers scheduler of `settings`, configured from the schedule that trained the network.

    Time steps are "trailing": they start at T, where training saw pure noise (Lin et al. 2023), and with eta 0 it
    equals the authors' DDIM.
    """
    classes = {
        "ddpm": (DDPMScheduler, {}),
        "ddim": (DDIMScheduler, {}),
        "dpm_solver": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        "unipc": (UniPCMultistepScheduler, {}),
    }
    scheduler_class, options = classes[settings.sampler]
    sampler = scheduler_class.from_config(schedule.config, timestep_spacing="trailing", **options)
    sampler.set_timesteps(settings.num_inference_steps, device=device)
    return sampler


@torch.no_grad()
def sample_tokens(
    network: Network,
    schedule: DDPMScheduler,
    settings: Sampling,
    generators: Sequence[torch.Generator],
    labels: Tensor | None = None,
) -> Tensor:
    """Denoise one sequence of tokens for each generator: `[len(generators), num_tokens, token_dim]`, about [-1, 1].

    Generators live on the CPU, so that a seed means the same image on every device.
    """
    device = next(network.parameters()).device
    sampler = make_sampler(settings, schedule, device)
    shape = (network.num_tokens, network.token_dim)
    x_t = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device) * sampler.init_noise_sigma
    options: dict[str, Any] = {}
    if settings.sampler in ("ddpm", "ddim"):
        options["generator"] = list(generators)
    if settings.sampler == "ddim":
        options["eta"] = settings.eta
    for t in sampler.timesteps:
        prediction = guided_prediction(network, x_t, t.expand(len(x_t)), labels, settings.guidance_scale)
        x_t = sampler.step(prediction, t, x_t, **options).prev_sample
    return x_t


def guided_prediction(network: Network, x_t: Tensor, t: Tensor, labels: Tensor | None, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): eps_without + scale (eps_with - eps_without), with a label.

    The same holds for v: given x_t it is linear in eps, and the two factors add up to 1.

    Args:
        network: one with classes, if the scale is not 1.
        x_t: noisy tokens `[B, S, token_dim]`.
        t: time steps `[B]`.
        labels: classes `[B]`, or None.
        scale: 1 is the prediction with the label; any other takes a second pass, in the same batch.

    Raises:
        ValueError: there are no labels, and the scale is not 1.
    """
    if scale == 1:
        return network(x_t, t, labels=labels)
    if labels is None:
        raise ValueError(f"scale={scale:g} without labels; allowed: 1")
    no_label = torch.full_like(labels, network.no_label)
    both = network(torch.cat([x_t, x_t]), torch.cat([t, t]), labels=torch.cat([labels, no_label]))
    with_label, without = both.chunk(2)
    return without + scale * (with_label - without)


def sample_images(
    network: Network,
    schedule: DDPMScheduler,
    settings: Sampling,
    indices: range,
    seed: int,
    labels: Tensor | None = None,
) -> np.ndarray:
    """Draw the images `indices`, uint8 `[n, C, H, W]`. Image i depends on (seed, i) alone.

    So it does not matter in which batch or by which process it is drawn, but for the rounding of matrix products.

    Args:
        network: with the weights to sample from (the EMA's), on any device.
        schedule: the one the network was trained with.
        settings: sampler, steps, eta, batch size, guidance.
        indices: which images, at least one: `range(n)` for the first n.
        seed: of the initial noise and of the sampler's noise.
        labels: class of image i at place i, for a network with classes.
    """
    network.eval()
    device = next(network.parameters()).device
    batches = []
    with tqdm(total=len(indices), desc=f"sample {settings.sampler}", unit="img", mininterval=bar_interval()) as bar:
        for start in range(0, len(indices), settings.batch_size):
            batch = indices[start : start + settings.batch_size]
            generators = [generator("cpu", seed, "sample", index) for index in batch]
            chosen = None if labels is None else labels[list(batch)].to(device)
            tokens = sample_tokens(network, schedule, settings, generators, chosen)
            batches.append(to_pixels(unpatchify(tokens, network.patch_size, network.grid)))
            bar.update(len(batch))
    return torch.cat(batches).numpy()


def to_pixels(images: Tensor) -> Tensor:
    """Float -1..1 (clipped) -> uint8 0..255, rounded, on the CPU."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
