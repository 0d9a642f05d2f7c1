"""DVC stage `throughput` of the study: speed and memory of a training step with each mask, against what FLOPs promise.

python -m pipeline.throughput

The speed is what the stage `step_time` measured. The memory of a mask is measured in a process of its own: what that
holds beyond what it holds before the first step.
"""

import math
from typing import Any

import pandas as pd

from maskdm.compute import PhasePlan, peak_memory_bytes
from maskdm.config import load_block, load_params, load_recipe
from maskdm.device import choose_device
from maskdm.errors import exit_with_one_line
from maskdm.files import write_csv
from maskdm.plan import arm_plans, training_step
from maskdm.records import read_step_times
from maskdm.step_time import WARM_UP
from maskdm.study import Parts
from pipeline.paths import ROOT, STUDY, STUDY_REPORTS, STUDY_STEP_TIME
from pipeline.workers import run_all

Row = dict[str, Any]

PART = "masks"  # whose masks are measured
TABLE = STUDY_REPORTS / "throughput.csv"


def main() -> None:
    """Measure the first phase of every arm of the part and write the table."""
    with exit_with_one_line():
        params, part = load_params(ROOT / "params.yaml"), load_block(Parts, "parts", STUDY).root[PART]
        comparison, recipe = part.comparison(params), load_recipe(params.recipe, ROOT)
        plans = {arm: arm_plans(comparison, recipe, arm)[0] for arm in part.arms}
        times = read_step_times(STUDY_STEP_TIME)
        memory = dict(run_all(measure_memory, list(plans.items()), workers=1, unit="mask"))
        rows = [row(arm, plan, times.of(f"{PART}/{arm}", 0), memory[arm], params.grid) for arm, plan in plans.items()]
        table = pd.DataFrame(rows)
        # Ideally a masked image is as much cheaper as it has fewer FLOPs: equal FLOP/s.
        dense = table.loc[table["effective_mask_ratio"] == 0, "flops_per_second"].iloc[0]
        table["of_flop_ideal"] = table["flops_per_second"] / dense
        write_csv(TABLE, table)


def measure_memory(task: tuple[str, PhasePlan]) -> tuple[str, int]:
    """The most bytes that training of one phase takes, beside the arm they belong to."""
    arm, plan = task
    params, device = load_params(ROOT / "params.yaml"), choose_device()
    before = peak_memory_bytes(device)
    step = training_step(params, load_recipe(params.recipe, ROOT), plan, device)
    for _ in range(WARM_UP):
        step()
    return arm, peak_memory_bytes(device) - before


def row(arm: str, plan: PhasePlan, seconds: float, memory: int, grid: tuple[int, int]) -> Row:
    """One mask: what a step of `seconds` makes of its images, tokens and FLOPs."""
    tokens = plan.mask.num_keep(grid) if plan.mask else math.prod(grid)
    return {
        "arm": arm,
        "effective_mask_ratio": plan.effective_mask_ratio,
        "batch_size": plan.batch_size,
        "visible_tokens": tokens,
        "images_per_second": plan.batch_size / seconds,
        "tokens_per_second": plan.batch_size * tokens / seconds,
        "flops_per_second": plan.step_flops / seconds,
        "memory_bytes": memory,
    }


if __name__ == "__main__":
    main()
