"""The dry run: what a profile will train, what it will spend, and about how long that takes on this machine."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.runtime.processes import ALONE, Processes
from maskdm.runtime.units import si
from maskdm.training.loop import PhaseTrainer
from maskdm.training.objective import make_objective
from maskdm.training.plan import PhasePlan, arm_plans, build_network

BURST_SECONDS = 2.0  # how long a phase is measured


@dataclass(frozen=True)
class PlannedPhase:
    """One line of the dry run."""

    arm: str
    plan: PhasePlan
    seconds: float  # estimated

    @property
    def flops(self) -> float:
        """FLOPs of this phase alone."""
        return self.plan.train_flops(self.plan.steps) - self.plan.start_flops


def dry_run(params: Params, recipe: Recipe, device: torch.device) -> list[PlannedPhase]:
    """Every phase of every arm with the time it will take, from a burst of real training steps of each kind."""
    rates: dict[tuple[object, ...], float] = {}
    phases = []
    for arm in params.arms:
        for plan in arm_plans(params, recipe, arm):
            kind = (plan.method, plan.mask, plan.batch_size)
            if kind not in rates:
                rates[kind] = measure_rate(params, recipe, plan, device)
            flops = plan.train_flops(plan.steps) - plan.start_flops
            phases.append(PlannedPhase(arm, plan, flops / rates[kind]))
    return phases


def measure_rate(params: Params, recipe: Recipe, plan: PhasePlan, device: torch.device) -> float:
    """FLOP/s of the phase's training step on random images, for about `BURST_SECONDS`.

    The batch grows from an image a group to the phase's. It stops where one step alone takes a part of the burst's
    time: a machine that could never hold the whole batch still gets an estimate.
    """
    batch_size = len(plan.groups)
    while True:
        part = dataclasses.replace(plan, batch_size=batch_size, steps=1)  # of so short a phase nothing is compiled
        whole = batch_size == plan.batch_size
        took = _seconds_a_step(params, recipe, part, device, burst=BURST_SECONDS / 2 if whole else 0.0)
        if whole or took > BURST_SECONDS / 4:
            return part.step_flops / took
        batch_size = min(plan.batch_size, 4 * batch_size)


def as_table(phases: list[PlannedPhase]) -> list[dict[str, str]]:
    """A row a phase, and one for each arm's total with one seed."""
    rows = []
    for arm in dict.fromkeys(phase.arm for phase in phases):
        own = [phase for phase in phases if phase.arm == arm]
        rows += [_cells(phase) for phase in own]
        images = sum(p.plan.steps * p.plan.batch_size for p in own)
        flops, seconds = sum(p.flops for p in own), sum(p.seconds for p in own)
        rows.append(_row(arm, "total", "", "", "", images, flops, seconds))
    return rows


def as_json(phases: list[PlannedPhase]) -> list[dict[str, Any]]:
    """The phases for a script."""
    return [
        {
            "arm": phase.arm,
            "phase": phase.plan.stage,
            "removed": phase.plan.removed,  # share of the tokens
            "batch_size": phase.plan.batch_size,
            "steps": phase.plan.steps,
            "images": phase.plan.steps * phase.plan.batch_size,
            "train_flops": phase.flops,
            "seconds": phase.seconds,
        }
        for phase in phases
    ]


def _cells(phase: PlannedPhase) -> dict[str, str]:
    plan = phase.plan
    less = f"{plan.method.in_words(plan.mask)} ({plan.removed:.1%})" if plan.removed else "none"
    images = plan.steps * plan.batch_size
    counts = str(plan.batch_size), f"{plan.steps:,}"
    return _row(phase.arm, plan.stage, less, *counts, images, phase.flops, phase.seconds)


def _row(
    arm: str, stage: str, less: str, batch: str, steps: str, images: int, flops: float, seconds: float
) -> dict[str, str]:
    return {
        "arm": arm,
        "phase": stage,
        "tokens removed": less,
        "batch": batch,
        "steps": steps,
        "images": f"{images:,}",
        "compute": si(flops, "FLOPs"),
        "time": duration(seconds),
    }


def _seconds_a_step(params: Params, recipe: Recipe, plan: PhasePlan, device: torch.device, burst: float) -> float:
    """The median of a few training steps, the first one not counted: of 2 to 20, as many as `burst` seconds allow."""
    step = training_step(params, recipe, plan, device)
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 2 or (time.perf_counter() - started < burst and len(times) < 20):
        before = time.perf_counter()
        step()
        times.append(time.perf_counter() - before)
    return median(times[1:])


def training_step(
    params: Params, recipe: Recipe, plan: PhasePlan, device: torch.device, processes: Processes = ALONE
) -> Callable[[], None]:
    """A call that makes one more real step of the phase, always on the same random images, and waits for its end.

    Raises:
        MaskDMError: the batch has fewer images than there are processes to share it.
    """
    network = build_network(params.model, params.data, num_classes=10).to(device)
    share = processes.share(plan.batch_size, "batch_size")
    shape = (share.stop - share.start, params.data.channels, params.data.image_size, params.data.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8)
    labels = torch.zeros(len(images), dtype=torch.long) if network.num_classes else None
    unread = PreparedData(images.numpy(), None, {})  # the step is handed its batch, and nothing is saved
    trainer = PhaseTrainer(
        network,
        make_objective(recipe.objective),
        unread,
        plan,
        heldout_loss=lambda _: 0.0,
        seed=0,
        folder=Path(),
        log=lambda _: None,
        processes=processes,
    )

    def step() -> None:
        trainer.train_step(images, labels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def duration(seconds: float) -> str:
    """`0:12:34`, or from a day on `3 d 04 h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d} h"
    return f"{hours}:{minutes:02d}:{rest:02d}"
