"""Speed and memory of a training step with a mask.

The memory is measured in a process of its own: what that holds beyond what it holds before the first step.
"""

import math
from typing import Any

from maskdm.config.reading import load_params, load_recipe
from maskdm.engine.dry_run import training_step
from maskdm.engine.step_time import WARM_UP
from maskdm.runtime.device import choose_device
from maskdm.runtime.paths import ROOT
from maskdm.training.plan import PhasePlan, peak_memory_bytes

Row = dict[str, Any]


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
