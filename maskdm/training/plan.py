"""Compute is the budget: training FLOPs counted by torch, and the plan that gives every arm the same number of them."""

import copy
import math
import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maskdm.config.comparison import Phase, removed_share
from maskdm.config.masks import Mask
from maskdm.config.method import Group
from maskdm.config.networks import Model
from maskdm.config.params import BUDGET_TOLERANCE, Data, Params
from maskdm.config.recipe import Handover, Optimisation, Recipe
from maskdm.methods.drop import DROP
from maskdm.methods.masks import draw_ids_keep
from maskdm.methods.method import Method, Trainee, View
from maskdm.networks.catalogue import NETWORKS
from maskdm.networks.network import Network
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reason
from maskdm.runtime.units import si
from maskdm.training.optimizers import make_optimizers

COUNTING_TOLERANCE = 1e-3  # of FLOPs that are counted twice


@dataclass(frozen=True)
class PhasePlan:
    """One phase of one arm, in whole optimiser steps. Images and FLOPs count from the beginning of the arm."""

    stage: Literal["pretrain", "finetune"]
    index: int  # among the arm's phases, pre-training first
    mask: Mask | None
    method: Method
    removed: float  # the share of tokens that a block does not see, on average: the effective mask ratio
    positions: bool  # whether the network is told where the visible tokens stand
    batch_size: int
    steps: int
    optimisation: Optimisation
    flops_per_image: float  # forward and backward
    optimizer_flops: float  # matrix products of the optimiser in one step, whatever its batch
    start_images: int
    start_flops: float
    heldout_steps: tuple[int, ...]  # after which the held-out loss is measured; the last step is one of them
    snapshot_steps: dict[int, float]  # step -> share of the budget, of the snapshots before the arm's end
    handover: Handover | None  # what the next phase starts from; None: there is no other
    data_set: str | None  # of the study, whose images it sees; None: those of the comparison
    # The schedule of learning rate and EMA, counted in compute and given in steps of this phase.
    schedule_offset: float  # what is behind it when this phase begins: 0, or the phases that it goes on from
    schedule_steps: float  # its whole length

    @property
    def groups(self) -> tuple[Group, ...]:
        """How a batch is divided."""
        return self.method.groups(self.batch_size, self.mask)

    @property
    def goes_on(self) -> bool:
        """Whether it starts from the whole state of the phase before."""
        return self.schedule_offset > 0

    def schedule_place(self, step: int) -> tuple[float, float]:
        """Where in its schedule `step` is, and how long that is, in steps of this phase."""
        return self.schedule_offset + step, self.schedule_steps

    @property
    def step_flops(self) -> float:
        """FLOPs of one step: forward, backward and update."""
        return self.batch_size * self.flops_per_image + self.optimizer_flops

    def images_seen(self, step: int) -> int:
        """Images the arm has seen after `step` steps of this phase."""
        return self.start_images + step * self.batch_size

    def train_flops(self, step: int) -> float:
        """FLOPs the arm has spent after `step` steps of this phase."""
        return self.start_flops + step * self.step_flops


def build_network(model: Model, data: Data, num_classes: int | None) -> Network:
    """The network that the settings describe, with freshly drawn weights (from torch's global generator)."""
    return NETWORKS[model.name](
        image_size=(data.image_size, data.image_size),
        in_channels=data.channels,
        num_classes=num_classes if model.class_conditional else None,
        **model.sizes(),
    )


def group_flops(trainee: Trainee, group: Group, device: torch.device | str = "meta") -> float:
    """Forward and backward FLOPs of one image of a group, as torch's counter counts them.

    Counted with plain attention: the fused CPU kernel is unknown to the counter and would be missed, and the fused GPU
    kernels count what they recompute. So the number is the same on every machine. On the meta device nothing is
    computed.
    """
    batch_size = 2
    twin = copy.deepcopy(trainee).to(device)
    network = twin.network
    ids_keep = None
    if group.mask:  # of real places: some networks look at them
        random = torch.Generator().manual_seed(0)
        ids_keep = draw_ids_keep(group.mask, network.grid, batch_size, random).to(device)
    with torch.device(device):
        whole = torch.zeros(batch_size, network.num_tokens, network.token_dim)
        t = torch.zeros(batch_size, dtype=torch.long)
        x_t = twin.method.visible(whole, ids_keep)
        labels = None if network.num_classes is None else t
        view = View(group, x_t, t, x_t, ids_keep, labels, chance=torch.zeros(batch_size), positions=True)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        [losses] = twin([view])
        losses.total.sum().backward()
    return counter.get_total_flops() / batch_size


def check_planned_flops(trainee: Trainee, plan: PhasePlan, device: torch.device) -> None:
    """Count a pass where the phase trains: the plan has counted one that computes nothing, and a budget rests on it.

    Raises:
        MaskDMError: they differ, as what the network or the method does depends on the device or on the numbers.
    """
    total = sum(group.images * group_flops(trainee, group, device) for group in plan.groups)
    found = total / sum(group.images for group in plan.groups)
    if not math.isclose(found, plan.flops_per_image, rel_tol=COUNTING_TOLERANCE):
        raise MaskDMError(
            f"method.name={plan.method.name}: an image takes {si(found, 'FLOPs')}, and the plan has counted "
            f"{si(plan.flops_per_image, 'FLOPs')}; allowed: what does the same on every device, with all numbers"
        )


def optimizer_flops(network: Network, settings: Optimisation) -> float:
    """FLOPs of one update, as torch's counter counts them: 0 for AdamW, which multiplies no matrices.

    Counted in, because a masked step is cheap and an update is not: Muon's would favour arms with many cheap steps.
    """
    twin = copy.deepcopy(network).to("meta")
    for parameter in twin.parameters():
        parameter.grad = torch.empty_like(parameter)
    with FlopCounterMode(display=False) as counter:
        for optimizer in make_optimizers(twin, settings):
            optimizer.step()
    return float(counter.get_total_flops())


def plan_pretrain(params: Params, recipe: Recipe, arm: str) -> tuple[PhasePlan, ...]:
    """The phases of `arm` before its last one, each with its share of the budget in whole steps."""
    plans: list[PhasePlan] = []
    phases = params.arms[arm][:-1]
    for place, phase in enumerate(phases):
        flops, before = (phase.share or 0.0) * params.budget.train_flops, plans[-1] if plans else None
        schedule_end = _schedule_end(phases, place, recipe) * params.budget.train_flops
        plans.append(_plan_phase(params, recipe, phase, flops, before, schedule_end, phase.handover or recipe.handover))
    return tuple(plans)


def plan_finetune(params: Params, recipe: Recipe, arm: str) -> PhasePlan:
    """The last phase of `arm`: what those before left of the budget, in whole steps.

    Raises:
        MaskDMError: whole steps miss the budget by more than half of `BUDGET_TOLERANCE`, which is for two arms; or
            samples are to be guided by a network that has not learnt to predict without a label.
    """
    pretrain = plan_pretrain(params, recipe, arm)
    before = pretrain[-1] if pretrain else None
    rest = params.budget.train_flops - (before.train_flops(before.steps) if before else 0.0)
    plan = _plan_phase(params, recipe, params.arms[arm][-1], rest, before, params.budget.train_flops, None)
    if params.sampling.guidance_scale != 1 and not plan.optimisation.label_dropout:
        raise MaskDMError(
            f"sampling.guidance_scale={params.sampling.guidance_scale:g} with label_dropout=0 in the last phase of arm "
            f"{arm}; allowed: 1, or a label_dropout above 0, by which the network learns to predict without a label"
        )
    missed = abs(plan.train_flops(plan.steps) / params.budget.train_flops - 1)
    if missed > BUDGET_TOLERANCE / 2:
        raise MaskDMError(
            f"budget.train_flops={params.budget.train_flops:.3g}: whole steps of arm {arm} miss it by {missed:.2%}; "
            f"allowed: {BUDGET_TOLERANCE / 2:.2%} (enlarge the budget or lower the batch sizes)"
        )
    return plan


def arm_plans(params: Params, recipe: Recipe, arm: str) -> tuple[PhasePlan, ...]:
    """All phases of an arm that have steps: an arm that is masked all the way has no fine-tuning."""
    plans = (*plan_pretrain(params, recipe, arm), plan_finetune(params, recipe, arm))
    return tuple(plan for plan in plans if plan.steps)


def _schedule_end(phases: Sequence[Phase], place: int, recipe: Recipe) -> float:
    """The share of the budget at which the schedule of a phase ends: with the next one to hand over only weights."""
    for last in range(place, len(phases)):
        if (phases[last].handover or recipe.handover) == "weights":
            return sum(phase.share or 0.0 for phase in phases[: last + 1])
    return 1.0


def _plan_phase(
    params: Params,
    recipe: Recipe,
    phase: Phase,
    flops: float,
    before: PhasePlan | None,
    schedule_end: float,
    handover: Handover | None,
) -> PhasePlan:
    """A phase that spends about `flops`, behind the phase `before`: one that hands over takes at least one step.

    Its schedule ends when the arm has spent `schedule_end` FLOPs.

    Raises:
        MaskDMError: it would go on with the state of another optimiser, or drop labels that there are not.
    """
    optimisation = phase.optimisation(recipe)
    if optimisation.label_dropout and not params.model.class_conditional:
        raise MaskDMError(
            f"label_dropout={optimisation.label_dropout:g} with model.class_conditional=false; allowed: 0"
        )
    method = method_of(phase)
    groups = method.groups(phase.batch_size, phase.mask)
    flops_per_image, update_flops = _step_costs(params.model, params.data, optimisation, method, groups)
    removed = removed_share(phase, params.grid, params.model.blocks)
    if phase.shows_less:
        dense, _ = _step_costs(params.model, params.data, optimisation, DROP, (Group(1),))
        _check_cost(method, flops_per_image / dense, 1 - removed, math.prod(params.grid))
    step_flops = phase.batch_size * flops_per_image + update_flops
    steps = max(1 if handover else 0, round(flops / step_flops))
    start_flops = before.train_flops(before.steps) if before else 0.0
    schedule_start = _schedule_start(before, optimisation) if before else 0.0
    schedule_offset = (start_flops - schedule_start) / step_flops
    return PhasePlan(
        stage="pretrain" if handover else "finetune",
        index=before.index + 1 if before else 0,
        mask=phase.mask,
        method=method,
        removed=removed,
        positions=phase.positions,
        batch_size=phase.batch_size,
        steps=steps,
        optimisation=optimisation,
        flops_per_image=flops_per_image,
        optimizer_flops=update_flops,
        start_images=before.images_seen(before.steps) if before else 0,
        start_flops=start_flops,
        heldout_steps=_heldout_steps(params, start_flops, step_flops, steps),
        snapshot_steps=_steps_at(params.budget.snapshots, params, start_flops, step_flops, steps),
        handover=handover,
        data_set=phase.set,
        schedule_offset=schedule_offset,
        schedule_steps=max(schedule_offset + steps, (schedule_end - schedule_start) / step_flops),
    )


def method_of(phase: Phase) -> Method:
    """The method that a phase names, or else the paper's."""
    if phase.method is None:
        return DROP
    assert isinstance(phase.method, Method)  # whoever names it has loaded it
    return phase.method


def _check_cost(method: Method, cost: float, seen: float, tokens: int) -> None:
    """Refuse a method whose step does not cost about what its blocks see: tables and controls go by the tokens.

    Args:
        method: of a phase.
        cost: of an image, over that of a whole one.
        seen: the share of tokens that a block sees, on average.
        tokens: of an image.

    Raises:
        MaskDMError: attention alone would cost less, or two more tokens of an image would not cost as much.
    """
    low, high = 0.9 * seen**2, 1.15 * (seen * tokens + 2) / (tokens + 2)
    if not low <= cost <= high:
        raise MaskDMError(
            f"method.name={method.name}: an image costs {cost:.1%} of a whole one, though blocks see {seen:.1%} of it; "
            f"allowed: {low:.1%} to {high:.1%} (`tokens_a_block` of the method is wrong, or what it does)"
        )


def _schedule_start(before: PhasePlan, optimisation: Optimisation) -> float:
    """The FLOPs of the arm at which the schedule of the phase behind `before` begins."""
    if before.handover == "weights":
        return before.train_flops(before.steps)
    if before.optimisation.optimizer != optimisation.optimizer:
        raise MaskDMError(
            f"handover=state from optimizer={before.optimisation.optimizer} to {optimisation.optimizer}; allowed: "
            "one optimizer, or handover=weights"
        )
    return before.start_flops - before.schedule_offset * before.step_flops


@cache  # counting takes a third of a second, and a search plans the same phases again and again
def _step_costs(
    model: Model, data: Data, optimisation: Optimisation, method: Method, groups: tuple[Group, ...]
) -> tuple[float, float]:
    """FLOPs of an image, on average over the groups of a batch, and of an update."""
    try:
        with torch.device("meta"):
            # A label costs its token and nothing else, so the number of classes does not matter here.
            network = build_network(model, data, num_classes=1)
        trainee = Trainee(network, method)
        images = sum(group.images for group in groups)
        flops = sum(group.images * group_flops(trainee, group) for group in groups) / images
        return flops, optimizer_flops(network, optimisation)
    except (RuntimeError, OverflowError) as error:  # sizes that are no 64-bit numbers
        raise MaskDMError(f"model: PyTorch has no such network: {reason(error)}") from None


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of the GPU's allocator on a GPU, of this process (resident set) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _heldout_steps(params: Params, start_flops: float, step_flops: float, steps: int) -> tuple[int, ...]:
    """Steps of a phase after which the held-out loss is measured: evenly spaced in the budget, and the last one."""
    points = params.heldout.points
    even = _steps_at((point / points for point in range(1, points)), params, start_flops, step_flops, steps)
    return tuple(sorted({*even, steps} - {0}))


def _steps_at(
    shares: Iterable[float], params: Params, start_flops: float, step_flops: float, steps: int
) -> dict[int, float]:
    """The first step of a phase that reaches each share of the budget; shares outside the phase, and 1, are left out.

    The end of an arm is not looked for: whole steps may end a little before or after the budget.
    """
    found = {}
    for share in shares:
        step = math.ceil((share * params.budget.train_flops - start_flops) / step_flops - 1e-6)
        if share < 1 and 0 < step <= steps:
            found[step] = share
    return found
