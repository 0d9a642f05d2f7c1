"""The trials of a part of the study: which are recorded, under whatever name, and which are to be trained."""

import shutil
from dataclasses import dataclass, replace

from maskdm.config.study import Study
from maskdm.engine.project import Project
from maskdm.engine.trial import run_trial, trial_identity, work_of
from maskdm.engine.workers import run_all
from maskdm.runtime.paths import ROOT
from maskdm.runtime.processes import ALONE
from maskdm.runtime.progress import Work, WorkBar
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import Machine, Record, fold_records, read_records, write_record


@dataclass(frozen=True)
class Task:
    """One trial of a part."""

    name: str  # of the part
    study: Study
    arm: str
    seed: int

    @property
    def key(self) -> str:
        """Of its record."""
        return f"{self.name}/{self.arm}-{self.seed}"

    def project(self, project: Project) -> Project:
        """The project with this trial's settings."""
        return project.of_part(self.study, self.name).trial(self.arm, self.seed)


def run_part(name: str, study: Study, workers: int) -> None:
    """Train and judge what is missing of a part, `workers` trials at a time, and write its file of records."""
    part = study.all_parts[name]
    tasks = [Task(name, study, arm, seed) for seed in part.seeds for arm in part.arms]
    missing = keep_known(Project.open(ALONE), tasks)
    if missing:
        bar = WorkBar(f"{name}: {len(missing)} of {len(tasks)} trials", Work([part.budget.train_flops] * len(missing)))
        for _ in run_all(run, missing, workers, unit="trial", bar=bar):
            pass
    fold_records(ROOT, "study", name, keep={task.key for task in tasks})
    mlflow_store.summarise(ROOT, "study")


def keep_known(project: Project, tasks: list[Task]) -> list[Task]:
    """Take over what is recorded of the tasks, under whatever name; returns those that are not."""
    known: dict[str, tuple[Record, Machine]] = {
        record.identity: (record, machine) for record, machine in read_records(ROOT, ("default", "study")) if machine
    }
    missing = []
    for task in tasks:
        identity = trial_identity(task.project(project), judged=True)
        if identity not in known:
            missing.append(task)
            continue
        shutil.rmtree(work_of(identity), ignore_errors=True)  # left by a kill just after the record was written
        record, machine = known[identity]
        if (record.stage, record.key) != ("study", task.key):
            params = record.params | {"arm": task.arm}
            write_record(ROOT, replace(record, stage="study", key=task.key, arm=task.arm, params=params), machine)
    return missing


def run(task: Task) -> None:
    """Train and judge one trial, in a process of its own."""
    run_trial(task.project(Project.open(ALONE)), "study", task.key, judged=True)
