"""A checkpoint of the authors' training as a snapshot, which the suite samples and judges as its own."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from maskdm.networks.authors import import_uvit
from maskdm.networks.uvit import UViT
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reason
from maskdm.training.checkpoint import read_tensors, save_snapshot

# What their checkpoints hold beside the network: the noise schedule, computed anew in every run.
SCHEDULE = {
    *("alphas", "betas", "alphas_cumprod", "alphas_cumprod_prev", "loss_weight"),
    *("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
}

WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod)\.")


def import_weights(file: Path, folder: Path, num_heads: int | None = None) -> str:
    """Write the network of the authors' checkpoint `file` as a snapshot to the new `folder`; returns what it is.

    Raises:
        MaskDMError: there is no such file, it is no such checkpoint, or the folder exists.
    """
    if folder.exists():
        raise MaskDMError(f"{folder}: exists; allowed: a new folder")
    kind, weights = _chosen(_read(file), file)
    theirs, alphas_cumprod = _of_the_network(weights, file)
    try:
        network = import_uvit(theirs, num_heads)
    except ValueError as error:
        raise MaskDMError(f"{file}: {error}") from None
    save_snapshot(folder, network, objective=None)
    return f"{_in_words(network)}, from the {kind}{_schedule_in_words(alphas_cumprod)}"


def _read(file: Path) -> dict[str, Any]:
    """What `torch.save` wrote; nothing in the file is run."""
    if not file.is_file():
        raise MaskDMError(f"{file}: no such file")
    try:
        content = read_tensors(file, torch.device("cpu"))
    except Exception as error:  # torch raises many kinds: zip, pickle, EOF, runtime
        raise MaskDMError(f"{file}: not a checkpoint of tensors: {reason(error).split('. ')[0]}") from None
    if not isinstance(content, dict):
        raise MaskDMError(f"{file}: not a checkpoint: {type(content).__name__}; allowed: a dictionary")
    return content


def _chosen(content: Mapping[str, Any], file: Path) -> tuple[str, dict[str, Tensor]]:
    """The averaged weights, where the file holds them (ema_pytorch's), else the others; and what they are called."""
    averaged = content.get("ema")
    if isinstance(averaged, Mapping):
        unwrapped = _unwrapped(averaged)
        if prefixed := {name: value for name, value in unwrapped.items() if name.startswith("ema_model.")}:
            own = {name.removeprefix("ema_model."): value for name, value in _tensors(prefixed, file).items()}
            return "EMA weights", own
    weights = content.get("model", content)
    if not isinstance(weights, Mapping):
        raise MaskDMError(f"{file}: model is {type(weights).__name__}; allowed: weights by name")
    return "weights, not averaged: the file has no EMA", _unwrapped(_tensors(weights, file))


def _unwrapped(weights: Mapping[Any, Any]) -> dict[str, Any]:
    """Without what DDP and `torch.compile` put before the names of the modules that they wrap."""
    return {WRAPPERS.sub("", str(name)): value for name, value in weights.items()}


def _tensors(weights: Mapping[Any, Any], file: Path) -> dict[str, Tensor]:
    """The weights, if they are such: numbers, each in the file and finite."""
    for name, value in weights.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise MaskDMError(
                f"{file}: {name} is no tensor; allowed: weights alone, or beside others as `ema` or `model`"
            )
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        # A view can show one number as very many.
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise MaskDMError(f"{file}: {name} is no plain tensor; allowed: one that holds all its numbers")
        if not value.isfinite().all():
            raise MaskDMError(f"{file}: {name} is not finite; allowed: numbers")
    return dict(weights)


def _of_the_network(weights: Mapping[str, Tensor], file: Path) -> tuple[dict[str, Tensor], Tensor | None]:
    """The network's weights, without the prefix of the diffusion around it, and the schedule of that if it is there."""
    if not any(name.startswith("model.") for name in weights):
        return dict(weights), None
    for name in weights:
        if not name.startswith("model.") and name not in SCHEDULE:
            raise MaskDMError(f"{file}: {name}: neither a weight of the network nor of the noise schedule")
    own = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    return own, weights.get("alphas_cumprod")


def _in_words(network: UViT) -> str:
    sizes = f"width {network.config.embed_dim}, {network.depth} blocks, {network.config.num_heads} heads"
    height, width = network.config.image_size
    images = f"{network.config.in_channels}x{height}x{width} images"
    classes = f", {network.num_classes} classes" if network.num_classes else ""
    return f"U-ViT, {sizes}, {network.patch_size}x{network.patch_size} patches of {images}{classes}"


def _schedule_in_words(alphas_cumprod: Tensor | None) -> str:
    """What a recipe must say for samples of the network: it predicts epsilon."""
    if alphas_cumprod is None or alphas_cumprod.dim() != 1 or not 2 <= len(alphas_cumprod) <= 100_000:
        return ""
    for name in ("linear", "squaredcos_cap_v2"):
        own = DDPMScheduler(len(alphas_cumprod), beta_schedule=name).alphas_cumprod
        if torch.allclose(own, alphas_cumprod.float(), atol=1e-4):
            return f"; trained with num_train_timesteps={len(own)}, beta_schedule={name}, prediction_type=epsilon"
    return "; trained with a noise schedule that no recipe has"
