"""Pictures from trained weights: samples with their way from noise, and the way from one sample to another."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from maskdm.engine.weights import Weights
from maskdm.evaluation.pictures import AnimationFormat, as_grid, save_animation, save_singles
from maskdm.evaluation.sampling import denoise, draw_noise, slerp, to_pixels
from maskdm.networks.patches import unpatchify
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import new_folder
from maskdm.runtime.progress import bar_interval
from maskdm.runtime.seeding import generator

INDEX = 0  # of the noise that `interpolate` takes of each seed: that of the first image of `sample`


def draw_samples(
    weights: Weights, out: Path, count: int, seed: int, chosen: int | None, animation: AnimationFormat | None
) -> list[Path]:
    """Write `grid.png`, `images/<number>.png` and `denoising.<animation>` to the new folder `out`.

    Image i is that of an evaluation with this seed, sampler and class.

    Args:
        weights: to draw from.
        out: a new folder.
        count: images, at least one.
        seed: of all noise.
        chosen: the class of all images; None: all classes in turn.
        animation: its format; None: no animation.

    Returns:
        The files.

    Raises:
        MaskDMError: there is no such class, or the folder exists or cannot be written.
    """
    labels = weights.labels(count, chosen)
    with new_folder(out) as folder:
        random = [generator("cpu", seed, "sample", index) for index in range(count)]
        noise = [draw_noise(weights.network, each) for each in random]
        states = _denoised(weights, noise, random, labels)
        frames = [as_grid(images) for images in (states if animation else states[-1:])]
        _write(folder, states[-1], frames, f"denoising.{animation}" if animation else None)
    return sorted(out.rglob("*.*"))


def draw_interpolation(
    weights: Weights,
    out: Path,
    count: int,
    seeds: tuple[int, int],
    chosen: int | None,
    animation: AnimationFormat | None,
) -> list[Path]:
    """Write `grid.png`, `images/<number>.png` and `interpolation.<animation>` to the new folder `out`.

    The first and the last image are those of the two seeds. The noise between them lies on the great circle.

    Raises:
        MaskDMError: the sampler adds noise of its own, there is no such class, or the folder exists or cannot be
            written.
    """
    sampling = weights.sampling
    if sampling.sampler == "ddpm" or sampling.eta:
        raise MaskDMError(
            f"sampling.sampler={sampling.sampler} with eta={sampling.eta:g} adds noise of its own; "
            "allowed: a sampler that is decided by its start, such as ddim with eta 0"
        )
    labels = weights.labels(count, 0 if chosen is None and weights.network.num_classes else chosen)
    with new_folder(out) as folder:
        ends = [draw_noise(weights.network, generator("cpu", seed, "sample", INDEX)) for seed in seeds]
        noise = [slerp(ends[0], ends[1], step / (count - 1)) for step in range(count)]
        random = [generator("cpu", seeds[0], "sample", INDEX)] * count  # nothing is drawn from it
        images = _denoised(weights, noise, random, labels)[-1]
        _write(
            folder,
            images,
            [as_grid(image[None]) for image in images],
            f"interpolation.{animation}" if animation else None,
        )
    return sorted(out.rglob("*.*"))


def _write(folder: Path, images: np.ndarray, frames: Sequence[Image.Image], animation: str | None) -> None:
    as_grid(images).save(folder / "grid.png")
    save_singles(images, folder / "images")
    if animation:
        save_animation(frames, folder / animation)


def _denoised(
    weights: Weights, noise: Sequence[Tensor], random: Sequence[torch.Generator], labels: Tensor | None
) -> list[np.ndarray]:
    """All images at each step of the sampler, uint8 `[n, C, H, W]`: from noise to the samples."""
    network, size = weights.network, weights.sampling.batch_size
    device = next(network.parameters()).device
    batches: list[list[Tensor]] = []
    with tqdm(total=len(noise), desc="sample", unit="img", mininterval=bar_interval()) as bar:
        for start in range(0, len(noise), size):
            part, states = slice(start, start + size), list[Tensor]()

            def keep(x_t: Tensor, states: list[Tensor] = states) -> None:
                shown = x_t / x_t.std().clamp(min=1)  # EDM's noise has a standard deviation of up to 80
                states.append(to_pixels(unpatchify(shown, network.patch_size, network.grid)))

            chosen = None if labels is None else labels[part].to(device)
            tokens = torch.stack(list(noise[part]))
            denoise(network, weights.objective, weights.sampling, tokens, random[part], chosen, keep)
            batches.append(states)
            bar.update(len(tokens))
    return [torch.cat(step).numpy() for step in zip(*batches, strict=True)]
