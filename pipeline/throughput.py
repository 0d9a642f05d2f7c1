"""DVC stage `throughput` of the study: speed and memory of a training step with each mask, against what FLOPs promise.

python -m pipeline.throughput

A mask is measured in a process of its own that uses the whole machine. Its memory is what the process holds beyond what
it holds before the first step; its speed is compared with that of dense steps made in turn with its own, so that what
else runs on the machine slows both.
"""

import math
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pandas as pd

from maskdm.compute import PhasePlan, peak_memory_bytes, plan_finetune, plan_pretrain
from maskdm.config import MaskedPhase, Phase, load_block
from maskdm.errors import exit_with_one_line
from maskdm.files import write_csv
from maskdm.plan import measure_rate
from maskdm.processes import ALONE
from maskdm.study import Parts
from pipeline.common import Project
from pipeline.paths import STUDY, STUDY_REPORTS
from pipeline.trial import trial_params
from pipeline.workers import run_all

Row = dict[str, Any]

PART = "masks"  # whose masks are measured
TABLE = STUDY_REPORTS / "throughput.csv"
ROUNDS = 3  # of dense and masked steps in turn


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
    _rate(project, own)
    memory = peak_memory_bytes(project.device) - before
    rates = [(_rate(project, own), _rate(project, dense)) for _ in range(ROUNDS)]
    flops_per_second = median(rate for rate, _ in rates)
    images_per_second = flops_per_second / own.step_flops * own.batch_size
    tokens = own.mask.num_keep(project.params.grid) if own.mask else math.prod(project.params.grid)
    return {
        "arm": task.arm,
        "effective_mask_ratio": own.effective_mask_ratio,
        "batch_size": own.batch_size,
        "visible_tokens": tokens,
        "images_per_second": images_per_second,
        "tokens_per_second": images_per_second * tokens,
        "flops_per_second": flops_per_second,
        # Ideally a masked image is as much cheaper as it has fewer FLOPs: equal FLOP/s.
        "of_flop_ideal": median(rate / dense_rate for rate, dense_rate in rates),
        "memory_bytes": memory,
    }


def _rate(project: Project, plan: PhasePlan) -> float:
    return measure_rate(project.params, project.recipe, plan, project.device)


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
