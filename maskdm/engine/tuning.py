"""Settings of single arms, chosen by Optuna: trial after trial, each drawn by what the ones before came to.

Trials of an arm run in turn, so that all that is known of them is in their records: a tuning that was killed, or that
gets more trials, draws the recorded ones again and goes on behind them. Those of several arms run side by side.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from maskdm.config.comparison import Budget
from maskdm.config.tuning import Tunings
from maskdm.engine.project import Project
from maskdm.engine.trial import recorded, run_trial
from maskdm.engine.workers import run_all
from maskdm.runtime.errors import DivergedError
from maskdm.runtime.files import write_csv
from maskdm.runtime.paths import ROOT, STUDY_REPORTS
from maskdm.runtime.processes import ALONE
from maskdm.runtime.progress import WorkBar
from maskdm.search import Chooser
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import fold_records

POINTS = 2  # of held-out loss: only the last one counts
THREADS = 1  # of a trial, whatever the number of workers: what is drawn next hangs on every digit


@dataclass(frozen=True)
class Task:
    """One trial of one arm."""

    arm: str
    number: int
    chosen: dict[str, Any]
    tunings: Tunings

    @property
    def key(self) -> str:
        """Of its record."""
        return f"{self.arm}/{self.number:02d}"

    def project(self) -> Project:
        """The opened project with this trial's settings."""
        project, tunings = Project.open(ALONE), self.tunings
        own = {
            "seeds": (tunings.seed,),
            "budget": Budget(train_flops=tunings.train_flops, snapshots=(1.0,)),
            "heldout": project.params.heldout.model_copy(update={"points": POINTS}),
        }
        params = project.params.model_copy(update=own)
        params, recipe = tunings.arms[self.arm].settings(self.arm, params, project.recipe, self.chosen)
        return replace(project, params=params, recipe=recipe)


def run_tunings(tunings: Tunings, workers: int) -> None:
    """Tune all arms, one trial of each after the other; write `reports/study/tuning.csv`."""
    choosers = {arm: Chooser(tuning.space, tunings.seed) for arm, tuning in tunings.arms.items()}
    rows: list[dict[str, Any]] = []
    for number in range(tunings.trials):
        tasks = [Task(arm, number, chooser.ask(), tunings) for arm, chooser in choosers.items()]
        losses = dict(run_all(loss_of, tasks, workers, "trial", _bar(tunings, number), threads=THREADS))
        for task in tasks:
            choosers[task.arm].tell(losses[task.key])
            rows.append({"arm": task.arm, "trial": number, "heldout_loss": losses[task.key], **task.chosen})
    write_csv(STUDY_REPORTS / "tuning.csv", pd.DataFrame(rows).sort_values(["arm", "trial"]))
    for arm in tunings.arms:
        fold_records(ROOT, "tuning", arm, keep={f"{arm}/{number:02d}" for number in range(tunings.trials)})
    mlflow_store.summarise(ROOT, "tuning")


def loss_of(task: Task) -> tuple[str, float]:
    """The trial's key, and the held-out loss that it ends with, recorded or trained now; infinite if it diverged."""
    project = task.project()
    known = recorded("tuning", project, task.key, judged=False)
    extra = {f"tuning.{path}": value for path, value in task.chosen.items()}
    try:
        record = known or run_trial(project, "tuning", task.key, judged=False, extra=extra).record
    except DivergedError:
        return task.key, math.inf
    return task.key, float(record.summary["heldout_loss"])


def _bar(tunings: Tunings, number: int) -> WorkBar:
    """How far all trials are, when those of one number are at work."""
    arms = len(tunings.arms)
    return WorkBar(
        f"trial {number + 1} of {tunings.trials}, {arms} arms",
        [tunings.train_flops] * arms,
        before=number * arms * tunings.train_flops,
        after=(tunings.trials - number - 1) * arms * tunings.train_flops,
    )
