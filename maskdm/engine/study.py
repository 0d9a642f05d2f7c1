"""The trials of one part of the study: which are recorded, under whatever name, and which are to be trained."""

from dataclasses import dataclass, replace

from maskdm.config.study import Part
from maskdm.engine.project import Project
from maskdm.engine.trial import run_trial, trial_identity, trial_params
from maskdm.runtime.paths import ROOT
from maskdm.runtime.processes import ALONE
from maskdm.tracking.records import Machine, Record, read_records, write_record


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
