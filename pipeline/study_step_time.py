"""DVC stage `step_time` of the study: seconds of a training step of every phase of all parts' arms, all timed in turn.

python -m pipeline.study_step_time

They are timed as trials train, with one core or one GPU each. Steps of several threads would depend on what else runs:
where one of the threads has to wait, small steps lose another share of their time than large ones.
"""

import torch

from maskdm.config import load_block, load_params, load_recipe
from maskdm.errors import exit_with_one_line
from maskdm.plan import arm_plans
from maskdm.processes import ALONE
from maskdm.study import Parts
from pipeline.paths import ROOT, STUDY, STUDY_STEP_TIME
from pipeline.step_time import write_times


def main() -> None:
    """Measure and write `records/study_step_time.json`, whose arms are called `<part>/<arm>`."""
    with exit_with_one_line():
        params = load_params(ROOT / "params.yaml")
        recipe = load_recipe(params.recipe, ROOT)
        parts = {name: part.comparison(params) for name, part in load_block(Parts, "parts", STUDY).root.items()}
        arms = {f"{name}/{arm}": arm_plans(part, recipe, arm) for name, part in parts.items() for arm in part.arms}
        torch.set_num_threads(1)
        write_times(STUDY_STEP_TIME, params, recipe, arms, ALONE)


if __name__ == "__main__":
    main()
