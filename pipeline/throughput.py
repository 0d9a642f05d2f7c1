"""DVC stage `throughput` of the study: speed and memory of a training step with each mask, against what FLOPs promise.

python -m pipeline.throughput

A mask is measured in a process of its own that uses the whole machine. Its memory is what the process holds beyond what
it holds before the first step; its speed is compared with that of dense steps, one after each of its own: whatever else
runs on the machine slows both for as long as it takes, and single steps that it hits do not move a median.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pandas as pd

from maskdm.compute import PhasePlan, peak_memory_bytes, plan_finetune, plan_pretrain
from maskdm.config import MaskedPhase, Phase, load_block
from maskdm.errors import exit_with_one_line
from maskdm.files import write_csv
from maskdm.plan import training_step
from maskdm.processes import ALONE
from maskdm.study import Parts
from pipeline.common import Project
from pipeline.paths import STUDY, STUDY_REPORTS
from pipeline.trial import trial_params
from pipeline.workers import run_all

Row = dict[str, Any]

PART = "masks"  # whose masks are measured
TABLE = STUDY_REPORTS / "throughput.csv"
WARM_UP = 3  # steps that are not timed: the first ones allocate
PAIRS = 50  # of a masked and a dense step


@dataclass(frozen=True)
class Task:
    """One masked phase, or the dense one, to measure."""

    arm: str
    masked: MaskedPhase | None
    dense: Phase


def main() -> None:
    """Measure every mask of the part and write the table."""
    with exit_with_one_line():
        part = load_block(Parts, "parts", STUDY).root[PART]
        phases = {arm: phases[0] if phases else None for arm, phases in part.arms.items()}
        tasks = [Task(arm, masked, part.finetune) for arm, masked in phases.items()]
        rows = {row["arm"]: row for row in run_all(measure, tasks, workers=1, unit="mask")}
        table = pd.DataFrame([rows[arm] for arm in phases])
        write_csv(TABLE, table)


def measure(task: Task) -> Row:
    """One row of the table."""
    project = Project.open(ALONE)
    dense, own = _plan(project, task, None), _plan(project, task, task.masked)
    before = peak_memory_bytes(project.device)
    own_step = _warm_step(project, own)
    memory = peak_memory_bytes(project.device) - before  # before there are dense steps, which may hold more
    dense_step = _warm_step(project, dense)
    seconds = [(_seconds(own_step), _seconds(dense_step)) for _ in range(PAIRS)]
    seconds_a_step = median(of_own for of_own, _ in seconds)
    images_per_second = own.batch_size / seconds_a_step
    tokens = own.mask.num_keep(project.params.grid) if own.mask else math.prod(project.params.grid)
    return {
        "arm": task.arm,
        "effective_mask_ratio": own.effective_mask_ratio,
        "batch_size": own.batch_size,
        "visible_tokens": tokens,
        "images_per_second": images_per_second,
        "tokens_per_second": images_per_second * tokens,
        "flops_per_second": own.step_flops / seconds_a_step,
        # Ideally a masked image is as much cheaper as it has fewer FLOPs: equal FLOP/s.
        "of_flop_ideal": own.step_flops / dense.step_flops * median(of_dense / of_own for of_own, of_dense in seconds),
        "memory_bytes": memory,
    }


def _warm_step(project: Project, plan: PhasePlan) -> Callable[[], None]:
    """A call that makes one more training step of the phase, after a few of them."""
    step = training_step(project.params, project.recipe, plan, project.device)
    for _ in range(WARM_UP):
        step()
    return step


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _plan(project: Project, task: Task, masked: MaskedPhase | None) -> PhasePlan:
    phases = () if masked is None else (masked,)
    budget = project.params.budget.train_flops
    params = trial_params(project.params, task.arm, phases, task.dense, project.params.seed, budget)
    one = replace(project, params=params)
    if masked is None:
        return plan_finetune(one.params, one.recipe, task.arm)
    return plan_pretrain(one.params, one.recipe, task.arm)[0]


if __name__ == "__main__":
    main()
