"""DVC stage `step_time`: seconds of a training step of every phase of every arm, all timed in turn.

python -m pipeline.launch step_time
"""

from maskdm.config.reading import load_params, load_recipe
from maskdm.engine.step_time import write_times
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.paths import ROOT, STEP_TIME
from maskdm.runtime.processes import started_processes
from maskdm.training.plan import arm_plans


def main() -> None:
    """Measure and write `records/step_time.json`; with several processes, as training does."""
    with exit_with_one_line(), started_processes() as processes:
        params = load_params(ROOT / "params.yaml")
        recipe = load_recipe(params.recipe, ROOT)
        arms = {arm: arm_plans(params, recipe, arm) for arm in params.arms}
        write_times(STEP_TIME, params, recipe, arms, processes)


if __name__ == "__main__":
    main()
