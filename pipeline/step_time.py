"""DVC stages `step_time`: seconds of a training step of every phase of every arm, all timed in turn, as trials train.

python -m pipeline.step_time [--study]
"""

import argparse

from maskdm.config.params import Params
from maskdm.config.reading import load_params, recipe_of
from maskdm.config.study import DEFAULT, load_study
from maskdm.engine.sharing import count_processes, start_processes, take_threads
from maskdm.engine.step_time import TimedArm, write_times
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.paths import ROOT, STEP_TIME, STUDY, STUDY_STEP_TIME
from maskdm.runtime.processes import started_processes
from maskdm.runtime.torchrun import within_torchrun
from maskdm.training.plan import arm_plans


def main() -> None:
    """Measure, and write a file in `records/` whose arms are called `<comparison>/<arm>`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.step_time")
    parser.add_argument("--study", action="store_true", help="of the study's parts instead of params.yaml")
    study = parser.parse_args().study
    with exit_with_one_line():
        params = load_params(ROOT / "params.yaml")
        found: dict[str, Params] = {DEFAULT: params}
        if study:
            asked = load_study(STUDY)
            found = {name: asked.params(name, params) for name in asked.all_parts}
        trials = sum(len(one.seeds) * len(one.arms) for one in found.values()) if study else len(params.seeds)
        processes = count_processes(trials)
        if processes > 1 and not within_torchrun():
            option = ["--study"] if study else []
            raise SystemExit(start_processes(processes, "pipeline.step_time", option))
        recipes = {name: recipe_of(one, ROOT) for name, one in found.items()}
        arms = {
            f"{name}/{arm}": TimedArm(one, recipes[name], arm_plans(one, recipes[name], arm))
            for name, one in found.items()
            for arm in one.arms
        }
        take_threads(trials, processes)
        with started_processes() as group:
            write_times(STUDY_STEP_TIME if study else STEP_TIME, arms, group)


if __name__ == "__main__":
    main()
