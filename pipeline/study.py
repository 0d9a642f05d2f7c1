"""DVC stage `part@<name>` of the study: every arm of one part of `study/params.yaml`, with every seed.

python -m pipeline.study PART [--workers N]

A trial that is recorded, in this part or in another one, is not trained again; one that was killed goes on.
"""

import argparse
from dataclasses import dataclass, replace

from maskdm.config import load_block
from maskdm.errors import MaskDMError, exit_with_one_line
from maskdm.processes import ALONE
from maskdm.records import Machine, Record, read_records, remove_records, write_record
from maskdm.study import Part, Parts
from pipeline.common import Project
from pipeline.paths import ROOT, STUDY
from pipeline.trial import run_trial, trial_identity, trial_params
from pipeline.workers import add_workers, count_workers, run_all


@dataclass(frozen=True)
class Task:
    """One trial of a part."""

    part: str
    arm: str
    seed: int
    settings: Part

    @property
    def key(self) -> str:
        """Of its record."""
        return f"{self.part}/{self.arm}-{self.seed}"

    def project(self, project: Project) -> Project:
        """The project with this trial's settings."""
        part = self.settings
        heldout = project.params.heldout.model_copy(update={"points": part.heldout_points})
        settings = project.params.model_copy(update={"heldout": heldout})
        params = trial_params(
            settings, self.arm, part.arms[self.arm], part.finetune, self.seed, part.train_flops, part.snapshots
        )
        return replace(project, params=params)


def main() -> None:
    """Train and judge what is missing; write `records/study/<part>/`."""
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
        remove_records(ROOT, "study", {task.key for task in tasks}, under=chosen.part)  # of arms that it had


def keep_known(project: Project, tasks: list[Task]) -> list[Task]:
    """Take over what is recorded of the tasks, under whatever name; returns those that are not."""
    known: dict[str, tuple[Record, Machine]] = {
        record.identity: (record, machine) for record, machine in read_records(ROOT, ("study",)) if machine
    }
    missing = []
    for task in tasks:
        identity = trial_identity(task.project(project), judged=True)
        if identity not in known:
            missing.append(task)
            continue
        record, machine = known[identity]
        if record.key != task.key:
            params = record.params | {"arm": task.arm}
            write_record(ROOT, replace(record, key=task.key, arm=task.arm, params=params), machine)
    return missing


def run(task: Task) -> None:
    """Train and judge one trial, in a process of its own."""
    run_trial(task.project(Project.open(ALONE)), "study", task.key, judged=True)


if __name__ == "__main__":
    main()
