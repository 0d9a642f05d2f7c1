"""What updates the weights, AdamW alone or Muon for the matrices of the blocks and AdamW for the rest, and how."""

import copy
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from maskdm.config.recipe import Optimisation
from maskdm.networks.network import Network
from maskdm.runtime.errors import MaskDMError
from maskdm.training.muon import Muon

MOMENTS = {AdamW: {"step", "exp_avg", "exp_avg_sq"}, Muon: {"momentum"}}  # what each keeps for a weight

Moments = Mapping[str, Mapping[str, Tensor]]  # of the weights, by name


def make_optimizers(network: Network, settings: Optimisation, added: Iterable[Tensor] = ()) -> list[Optimizer]:
    """What updates the weights of `network`, each of them once; learning rates are set before every step.

    AdamW updates the weights that a method has added as well, without decay.

    Raises:
        MaskDMError: Muon is asked for, and there is nothing that it could update.
    """
    muon = network.matrices() if settings.optimizer == "muon" else []
    if settings.optimizer == "muon" and not muon:
        raise MaskDMError("optimizer=muon, but the network has no matrices for it; allowed: adamw")
    left = parameter_groups(network, settings.weight_decay, without=muon)
    if added := list(added):
        left.append({"params": added, "weight_decay": 0.0})
    fused = network.device.type != "meta"  # where FLOPs are counted: it has no fused kernel
    adamw = AdamW(left, lr=settings.lr, betas=settings.betas, fused=fused)
    if not muon:
        return [adamw]
    return [adamw, Muon(muon, settings.lr, settings.betas[0], settings.weight_decay)]


def update(
    network: nn.Module, ema: nn.Module, optimizers: list[Optimizer], settings: Optimisation, step: float, steps: float
) -> Tensor:
    """End a step: clip, update, clear the gradients, average the weights.

    Args:
        network: whose weights have gradients.
        ema: its averaged weights.
        optimizers: of `make_optimizers`.
        settings: of the phase.
        step: from 1; beyond `steps` the learning rate and the averaging stay, if the schedule has no decay.
        steps: of the schedule, that the shares refer to; with `step` in units of this phase's own steps.

    Returns:
        The norm of the gradient before it was clipped.
    """
    norm = nn.utils.clip_grad_norm_(network.parameters(), settings.grad_clip or math.inf)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, steps)
        optimizer.step()
        optimizer.zero_grad()
    decay = ema_decay(settings, step, steps)
    with torch.no_grad():  # else each average would keep the autograd nodes of all steps before it
        torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 1 - decay)
    return norm.detach()


def moments_of(optimizers: Iterable[Optimizer], weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What the optimizers have kept for the weights; theirs, not copies."""
    names = {id(weight): name for name, weight in weights.items()}
    return {names[id(weight)]: kept for each in optimizers for weight, kept in each.state.items()}


def give_moments(optimizers: Iterable[Optimizer], weights: Mapping[str, Tensor], moments: Moments) -> None:
    """Undo `moments_of`; weights that `moments` does not name begin without any.

    Raises:
        KeyError: there is no such weight.
        ValueError: what was kept is not of these weights. A fused kernel does not look, and would write beyond it.
    """
    owners = {id(weight): each for each in optimizers for group in each.param_groups for weight in group["params"]}
    for name, kept in moments.items():
        weight = weights[name]
        owner = owners[id(weight)]
        if set(kept) != MOMENTS[type(owner)]:
            raise ValueError(f"{name}: {', '.join(map(str, kept)) or 'nothing'} kept for it")
        for key, value in kept.items():
            wanted = ((), torch.float32) if key == "step" else (weight.shape, weight.dtype)
            if (value.shape, value.dtype) != wanted or not torch.isfinite(value).all():
                raise ValueError(f"{name}: {key} is not of it")
        owner.state[weight] = copy.deepcopy(dict(kept))  # a copy: the state may be handed on


def learning_rate(settings: Optimisation, step: float, steps: float) -> float:
    """At `step` (from 1) of `steps`: a linear rise to the peak, a plateau, a linear fall to 0."""
    rise = step / max(1.0, settings.warmup * steps)
    fall = max(0.0, steps - step + 1) / (settings.decay * steps) if settings.decay else 1.0
    return settings.lr * min(1.0, rise, fall)


def ema_decay(settings: Optimisation, step: float, steps: float) -> float:
    """After `step` (from 1) of `steps`: averages over a share of the steps, over fewer at the start."""
    return min(1 - 1 / max(1.0, settings.ema_horizon * steps), (1 + step) / (10 + step))


def parameter_groups(network: nn.Module, weight_decay: float, without: list[Tensor]) -> list[dict[str, object]]:
    """Weights of linear layers and convolutions decay; biases, norms and embeddings do not."""
    excluded = {id(p) for p in without}
    decaying = {id(m.weight) for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    left = [p for p in network.parameters() if id(p) not in excluded]
    return [
        {"params": [p for p in left if id(p) in decaying], "weight_decay": weight_decay},
        {"params": [p for p in left if id(p) not in decaying], "weight_decay": 0.0},
    ]
