"""DVC stage `step_time`: seconds of a training step of every phase of every arm, all timed in turn.

python -m pipeline.launch step_time
"""

from collections.abc import Mapping
from pathlib import Path

from maskdm.compute import PhasePlan
from maskdm.config import Params, Recipe, load_params, load_recipe
from maskdm.device import choose_device
from maskdm.errors import exit_with_one_line
from maskdm.plan import arm_plans
from maskdm.processes import Processes, started_processes
from maskdm.records import StepTimes, git_state, hardware, write_step_times
from maskdm.step_time import seconds_a_step
from pipeline.common import now
from pipeline.paths import ROOT, STEP_TIME


def main() -> None:
    """Measure and write `records/step_time.json`; with several processes, as training does."""
    with exit_with_one_line(), started_processes() as processes:
        params = load_params(ROOT / "params.yaml")
        recipe = load_recipe(params.recipe, ROOT)
        arms = {arm: arm_plans(params, recipe, arm) for arm in params.arms}
        write_times(STEP_TIME, params, recipe, arms, processes)


def write_times(
    path: Path, params: Params, recipe: Recipe, arms: Mapping[str, tuple[PhasePlan, ...]], processes: Processes
) -> None:
    """Time the steps of all phases of `arms`, and let the main process write what came out."""
    started_at, device = now(), choose_device()
    seconds, spread = seconds_a_step(params, recipe, arms, device, processes)
    if processes.is_main:
        times = StepTimes(started_at, git_state(ROOT), hardware(device, processes.count), seconds, spread)
        write_step_times(path, times)


if __name__ == "__main__":
    main()
