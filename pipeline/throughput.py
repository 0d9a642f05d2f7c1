"""DVC stage `throughput` of the study: speed and memory of a training step with each mask, against what FLOPs promise.

The speed is what the stage `step_time` measured.
"""

import pandas as pd

from maskdm.config.reading import load_params, recipe_of
from maskdm.config.study import load_study
from maskdm.engine.step_time import measure_memory, throughput
from maskdm.engine.workers import run_all
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.files import write_csv
from maskdm.runtime.paths import ROOT, STUDY, STUDY_REPORTS, STUDY_STEP_TIME
from maskdm.tracking.records import read_step_times
from maskdm.training.plan import arm_plans

PART = "masks"  # whose masks are measured
TABLE = STUDY_REPORTS / "throughput.csv"


def main() -> None:
    """Measure the first phase of every arm of the part and write the table."""
    with exit_with_one_line():
        params = load_params(ROOT / "params.yaml")
        comparison, recipe = load_study(STUDY).params(PART, params), recipe_of(params, ROOT)
        plans = {arm: arm_plans(comparison, recipe, arm)[0] for arm in comparison.arms}
        times = read_step_times(STUDY_STEP_TIME)
        memory = dict(run_all(measure_memory, list(plans.items()), workers=1, unit="mask"))
        rows = [
            throughput(arm, plan, times.of(f"{PART}/{arm}", 0), memory[arm], params.grid) for arm, plan in plans.items()
        ]
        table = pd.DataFrame(rows)
        # Ideally a masked image is as much cheaper as it has fewer FLOPs: equal FLOP/s.
        dense = table.loc[table["effective_mask_ratio"] == 0, "flops_per_second"].iloc[0]
        table["of_flop_ideal"] = table["flops_per_second"] / dense
        write_csv(TABLE, table)


if __name__ == "__main__":
    main()
