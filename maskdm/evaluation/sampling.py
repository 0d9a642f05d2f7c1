"""Images from a network: diffusers' samplers on patch tokens, one seed per image whatever the batch size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor
from tqdm import tqdm

from maskdm.config.objective import DDPM, EDM, TIME_SCALE, VP, Flow, ObjectiveSettings
from maskdm.config.params import Sampling
from maskdm.networks.network import Network
from maskdm.networks.patches import unpatchify
from maskdm.runtime.device import tf32_products
from maskdm.runtime.progress import bar_interval
from maskdm.runtime.seeding import generator

Watch = Callable[[Tensor], None]


@dataclass(frozen=True)
class Sampler:
    """A scheduler of diffusers with its steps set, and what the network is told at each of them."""

    scheduler: Any
    network_times: Tensor  # `[evaluations]`

    def start(self, noise: Tensor) -> Tensor:
        """Where sampling starts from standard normal `noise`. Schedulers of flow matching start from noise itself."""
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network is shown of x_t at the scheduler's time step t. Those of flow matching scale nothing."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        return scale(x_t, t) if scale else x_t


def make_sampler(settings: Sampling, objective: ObjectiveSettings, device: torch.device) -> Sampler:
    """The sampler of `settings`, one of the objective's, for the process that the network was trained on."""
    match objective:
        case DDPM():
            scheduler = _chain(settings, objective, device)
            return Sampler(scheduler, scheduler.timesteps)
        case VP():
            # Step i of 1000 is at t = (i + 1) / 1000, and has its noise level (`training.objective.VPObjective`).
            steps = DDPM(
                num_train_timesteps=TIME_SCALE,
                beta_schedule="squaredcos_cap_v2",
                prediction_type=objective.prediction_type,
            )
            scheduler = _chain(settings, steps, device)
            return Sampler(scheduler, scheduler.timesteps + 1)
        case Flow():
            scheduler = _flow(settings, device)
            # Not its time steps: dpm_solver and unipc round them down to whole ones.
            return Sampler(scheduler, TIME_SCALE * scheduler.sigmas[:-1].to(device))
        case EDM():
            scheduler = _edm(settings, objective, device)
            return Sampler(scheduler, TIME_SCALE * scheduler.timesteps)  # ln(sigma) / 4


def _chain(settings: Sampling, objective: DDPM, device: torch.device) -> Any:
    """A scheduler of time steps.

    They are "trailing": they start at T, where training saw pure noise (Lin et al. 2023), and with eta 0 it equals the
    authors' DDIM. The image that a prediction of epsilon implies is clipped to [-1, 1], as the authors do: at T it is
    that prediction's error over nearly 0. diffusers' DDPM and DDIM clip by themselves.
    """
    clip = {"thresholding": objective.prediction_type == "epsilon", "sample_max_value": 1.0}
    classes: dict[str, tuple[Any, dict[str, Any]]] = {
        "ddpm": (DDPMScheduler, {}),
        "ddim": (DDIMScheduler, {}),
        "dpm_solver": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", **clip}),
        "unipc": (UniPCMultistepScheduler, clip),
    }
    scheduler_class, options = classes[settings.sampler]
    schedule = objective.model_dump(exclude={"name"})
    scheduler = scheduler_class(**schedule, timestep_spacing="trailing", **options)
    scheduler.set_timesteps(settings.num_inference_steps, device=device)
    return scheduler


def _flow(settings: Sampling, device: torch.device) -> Any:
    """A scheduler of rectified flow, with equal steps from pure noise to the image.

    The last step of diffusers' own choice for euler and heun would be from 0.001 to 0: an evaluation for nothing.
    """
    steps = settings.num_inference_steps
    if settings.sampler == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), device=device)
        return scheduler
    if settings.sampler == "heun":
        scheduler = FlowMatchHeunDiscreteScheduler()
        scheduler.sigma_min = 1 / steps
    else:
        multistep = {"dpm_solver": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}
        scheduler = multistep[settings.sampler](use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def _edm(settings: Sampling, objective: EDM, device: torch.device) -> Any:
    """A scheduler of unscaled images, with steps of Karras et al. 2022, eq. 5."""
    scheduler_class = {"euler": EDMEulerScheduler, "dpm_solver": EDMDPMSolverMultistepScheduler}[settings.sampler]
    scheduler = scheduler_class(**objective.model_dump(include={"sigma_min", "sigma_max", "sigma_data"}))
    scheduler.set_timesteps(settings.num_inference_steps, device=device)
    return scheduler


@torch.no_grad()
def sample_tokens(
    network: Network,
    objective: ObjectiveSettings,
    settings: Sampling,
    generators: Sequence[torch.Generator],
    labels: Tensor | None = None,
) -> Tensor:
    """Denoise one sequence of tokens for each generator: `[len(generators), num_tokens, token_dim]`, about [-1, 1].

    Generators live on the CPU, so that a seed means the same image on every device.
    """
    noise = torch.stack([draw_noise(network, each) for each in generators])
    return denoise(network, objective, settings, noise, generators, labels)


def draw_noise(network: Network, random: torch.Generator) -> Tensor:
    """Standard normal tokens of one image, `[num_tokens, token_dim]`, on the CPU."""
    return torch.randn((network.num_tokens, network.token_dim), generator=random)


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The noise on the great circle between two, of any shape, at `share` of the way.

    On a straight line the noise between two would have less variance than either, and images there would be flat.
    """
    cosine = F.cosine_similarity(first.flatten(), second.flatten(), dim=0).clamp(-1, 1)
    angle = torch.acos(cosine)
    if angle < 1e-4:  # the same noise, but for rounding
        return torch.lerp(first, second, share)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)


@torch.no_grad()
def denoise(
    network: Network,
    objective: ObjectiveSettings,
    settings: Sampling,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    labels: Tensor | None = None,
    watch: Watch = lambda _: None,
) -> Tensor:
    """Images from noise, both as tokens `[n, num_tokens, token_dim]`.

    Args:
        network: with the weights to sample from.
        objective: the one the network was trained with.
        settings: sampler, one of the objective's, steps, eta, guidance.
        noise: standard normal.
        generators: of the noise that the sampler adds, one an image, on the CPU.
        labels: classes `[n]`, for a network with classes.
        watch: called with the tokens on their way, the noise first.
    """
    device = next(network.parameters()).device
    sampler = make_sampler(settings, objective, device)
    x_t = sampler.start(noise.to(device))
    watch(x_t)
    options: dict[str, Any] = {}
    if settings.sampler in ("ddpm", "ddim"):
        options["generator"] = list(generators)
    if settings.sampler == "ddim":
        options["eta"] = settings.eta
    for t, time in zip(sampler.scheduler.timesteps, sampler.network_times, strict=True):
        told, seen = time.expand(len(x_t)), sampler.network_input(x_t, t)
        with tf32_products(device):
            prediction = guided_prediction(network, seen, told, labels, settings.guidance_scale)
        x_t = sampler.scheduler.step(prediction, t, x_t, **options).prev_sample
        watch(x_t)
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
    objective: ObjectiveSettings,
    settings: Sampling,
    indices: range,
    seed: int,
    labels: Tensor | None = None,
) -> np.ndarray:
    """Draw the images `indices`, uint8 `[n, C, H, W]`. Image i depends on (seed, i) alone.

    So it does not matter in which batch or by which process it is drawn, but for the rounding of matrix products.

    Args:
        network: with the weights to sample from (the EMA's), on any device.
        objective: the one the network was trained with.
        settings: sampler, one of the objective's, steps, eta, batch size, guidance.
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
            tokens = sample_tokens(network, objective, settings, generators, chosen)
            batches.append(to_pixels(unpatchify(tokens, network.patch_size, network.grid)))
            bar.update(len(batch))
    return torch.cat(batches).numpy()


def to_pixels(images: Tensor) -> Tensor:
    """Float -1..1 (clipped) -> uint8 0..255, rounded, on the CPU."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
