"""How long a training step of every phase takes, all timed in turn: what arms' seconds are compared by. And its memory.

Wall times of separate runs do not compare: the machine may have been busier during one of them. Here one step of each
kind follows on another, again and again, so that whatever else runs on the machine slows all of them alike.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from maskdm.config.params import Params
from maskdm.config.reading import load_params, recipe_of
from maskdm.config.recipe import Recipe
from maskdm.engine.dry_run import training_step
from maskdm.engine.project import now
from maskdm.runtime.device import choose_device
from maskdm.runtime.paths import ROOT
from maskdm.runtime.processes import ALONE, Processes
from maskdm.runtime.progress import bar_interval
from maskdm.tracking.records import StepTimes, git_state, hardware, write_step_times
from maskdm.training.plan import PhasePlan, peak_memory_bytes

Kind = TypeVar("Kind", bound=Hashable)

WARM_UP = 3  # steps of each kind that are not timed: the first ones allocate
ROUNDS = 100  # of one step of each kind
MIN_ROUNDS = 5  # however long they take
SECONDS = 300.0  # after which there are no more than those


@dataclass(frozen=True)
class TimedArm:
    """The phases of an arm, and what they train."""

    params: Params  # of `arms` and `budget` nothing is read
    recipe: Recipe
    plans: Sequence[PhasePlan]

    def kinds(self) -> list[Hashable]:
        """What a step of each phase does, of which network and to which end."""
        return [(self.params.model, self.recipe.objective, work(plan)) for plan in self.plans]


def seconds_a_step(
    arms: Mapping[str, TimedArm], device: torch.device, processes: Processes = ALONE
) -> tuple[dict[str, list[float]], float]:
    """Seconds that a step of each phase takes, by arm, and their `spread`; steps that do the same work have the same.

    Every kind of step keeps a network of its own to the end: weights, their average and the optimizer's moments, 16
    bytes a parameter with AdamW. Activations and gradients are freed after each step.

    Args:
        arms: those whose steps are timed.
        device: where to train.
        processes: those that share each batch, as in training; all of them measure, the main one's times count.

    Raises:
        MaskDMError: a batch has fewer images than there are processes.
    """
    kinds = {kind: (arm, plan) for arm in arms.values() for kind, plan in zip(arm.kinds(), arm.plans, strict=True)}
    steps = {
        kind: training_step(arm.params, arm.recipe, plan, device, processes) for kind, (arm, plan) in kinds.items()
    }
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    found = timed_rounds(steps, processes)
    seconds = fair_seconds(found)
    return {name: [seconds[kind] for kind in arm.kinds()] for name, arm in arms.items()}, spread(found)


def write_times(path: Path, arms: Mapping[str, TimedArm], processes: Processes) -> None:
    """Time the steps of all phases of `arms`, and let the main process write what came out."""
    started_at, device = now(), choose_device()
    seconds, spread = seconds_a_step(arms, device, processes)
    if processes.is_main:
        times = StepTimes(started_at, git_state(ROOT), hardware(device, processes.count), seconds, spread)
        write_step_times(path, times)


def work(plan: PhasePlan) -> Hashable:
    """What a step of the phase does. The schedule of learning rate and average changes its numbers, not its work."""
    schedule = dict.fromkeys(("lr", "warmup", "decay", "ema_horizon"), 0.0)
    return plan.method, plan.mask, plan.positions, plan.batch_size, plan.optimisation.model_copy(update=schedule)


def timed_rounds(steps: Mapping[Kind, Callable[[], object]], processes: Processes = ALONE) -> list[dict[Kind, float]]:
    """`ROUNDS` rounds, or as many as `SECONDS` allow, but at least `MIN_ROUNDS`; the same number in every process."""
    found: list[dict[Kind, float]] = []
    started, late = perf_counter(), False
    with tqdm(desc="step time", total=ROUNDS, unit="round", mininterval=bar_interval()) as bar:
        while len(found) < (MIN_ROUNDS if late else ROUNDS):
            found.append(timed_round(steps))
            (late,) = processes.agree(perf_counter() - started > SECONDS)
            bar.update()
    return found


def timed_round(steps: Mapping[Kind, Callable[[], object]]) -> dict[Kind, float]:
    """The seconds of one call of every step, one after the other."""
    return {kind: _seconds(step) for kind, step in steps.items()}


def fair_seconds(found: Sequence[Mapping[Kind, float]]) -> dict[Kind, float]:
    """Seconds of a step of each kind: its median share of a round, times the quickest round.

    What slows the machine for longer than a round slows all of the round, and leaves the shares as they are. What hits
    single steps moves no median. So the ratio of two kinds is right even on a machine that is three times as slow
    half of the time. The quickest round says what the machine can do, as far as other work lets it.
    """
    quickest = min(sum(seconds.values()) for seconds in found)
    return {kind: quickest * median(own) for kind, own in _shares(found).items()}


def spread(found: Sequence[Mapping[Kind, float]]) -> float:
    """How far apart the middle half of a step's shares of a round lies, over their median, of the least steady kind.

    A few percent on a quiet machine. Where it is much more, other work takes turns with the steps.
    """
    quarters = [quantiles(own, n=4) for own in _shares(found).values()]
    return max((high - low) / middle for low, middle, high in quarters)


def _shares(found: Sequence[Mapping[Kind, float]]) -> dict[Kind, list[float]]:
    return {kind: [seconds[kind] / sum(seconds.values()) for seconds in found] for kind in found[0]}


def _seconds(step: Callable[[], object]) -> float:
    started = perf_counter()
    step()
    return perf_counter() - started


# --- beside the speed: memory, and what a step makes of its images, tokens and FLOPs ----------------------------


def measure_memory(task: tuple[str, PhasePlan]) -> tuple[str, int]:
    """The most bytes that training of one phase takes beyond those before its first step, beside the arm it is of.

    To be called in a process of its own.
    """
    arm, plan = task
    params, device = load_params(ROOT / "params.yaml"), choose_device()
    before = peak_memory_bytes(device)
    step = training_step(params, recipe_of(params, ROOT), plan, device)
    for _ in range(WARM_UP):
        step()
    return arm, peak_memory_bytes(device) - before


def throughput(arm: str, plan: PhasePlan, seconds: float, memory: int, grid: tuple[int, int]) -> dict[str, Any]:
    """One mask: what a step of `seconds` makes of its images, tokens and FLOPs."""
    tokens = (1 - plan.removed) * math.prod(grid)
    return {
        "arm": arm,
        "effective_mask_ratio": plan.removed,
        "batch_size": plan.batch_size,
        "visible_tokens": tokens,
        "images_per_second": plan.batch_size / seconds,
        "tokens_per_second": plan.batch_size * tokens / seconds,
        "flops_per_second": plan.step_flops / seconds,
        "memory_bytes": memory,
    }
