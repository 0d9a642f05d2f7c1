"""DVC stage `part@<name>` of the study: every arm of one part of `study/params.yaml`, with every seed.

python -m pipeline.study PART [--workers N]

A trial that is recorded, in this part or in another one, is not trained again; one that was killed goes on.
"""

import argparse

from maskdm.config.reading import load_block
from maskdm.config.study import Parts
from maskdm.engine.project import Project
from maskdm.engine.study import Task, keep_known, run
from maskdm.engine.workers import add_workers, count_workers, run_all
from maskdm.runtime.errors import MaskDMError, exit_with_one_line
from maskdm.runtime.paths import ROOT, STUDY
from maskdm.runtime.processes import ALONE
from maskdm.tracking.records import fold_records


def main() -> None:
    """Train and judge what is missing; write `records/study/<part>.jsonl`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    add_workers(parser, "trials at a time")
    chosen = parser.parse_args()
    with exit_with_one_line():
        workers = count_workers(chosen)
        parts = load_block(Parts, "parts", STUDY).root
        if chosen.part not in parts:
            raise MaskDMError(f"{chosen.part}: allowed: one of {', '.join(parts)}")
        settings = parts[chosen.part]
        tasks = [Task(chosen.part, arm, seed, settings) for seed in settings.seeds for arm in settings.arms]
        missing = keep_known(Project.open(ALONE), tasks)
        for _ in run_all(run, missing, workers, unit="trial"):
            pass
        fold_records(ROOT, "study", chosen.part, keep={task.key for task in tasks})


if __name__ == "__main__":
    main()
