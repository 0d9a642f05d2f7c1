"""Settings of single arms, chosen by Optuna: trial after trial, each drawn by what the ones before came to.

Trials of an arm run in turn, so that all that is known of them is in their records: a tuning that was killed, or that
gets more trials, draws the recorded ones again and goes on behind them. Those of several arms run side by side.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from maskdm.config.comparison import Budget
from maskdm.config.reading import load_recipe
from maskdm.config.study import Study
from maskdm.config.tuning import Tuned
from maskdm.engine.project import Project
from maskdm.engine.trial import recorded, run_trial
from maskdm.engine.workers import run_all
from maskdm.runtime.errors import DivergedError
from maskdm.runtime.files import write_csv
from maskdm.runtime.paths import ROOT, STUDY_REPORTS
from maskdm.runtime.processes import ALONE
from maskdm.runtime.progress import Work, WorkBar
from maskdm.search import Chooser
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import fold_records

POINTS = 2  # of held-out loss: only the last one counts
THREADS = 1  # of a trial, whatever the number of workers: what is drawn next hangs on every digit


@dataclass(frozen=True)
class Task:
    """One trial of one arm."""

    study: Study
    name: str  # of the tuning
    arm: str
    number: int
    chosen: dict[str, Any]

    @property
    def tuned(self) -> Tuned:
        """Its settings."""
        return self.study.all_tunings[self.name]

    @property
    def key(self) -> str:
        """Of its record."""
        return f"{self.name}/{self.arm}-{self.number:02d}"

    def project(self) -> Project:
        """The opened project with this trial's settings."""
        project, tuned = Project.open(ALONE), self.tuned
        own = {
            "seeds": (tuned.seed,),
            "budget": Budget(train_flops=tuned.train_flops, snapshots=(1.0,)),
            "heldout": project.params.heldout.model_copy(update={"points": POINTS}),
        }
        own |= {key: found for key in ("recipe", "model") if (found := getattr(tuned, key))}
        if tuned.set is not None:
            own["data"] = self.study.sets[tuned.set].data
        params = project.params.model_copy(update=own)
        recipe = load_recipe(params.recipe, ROOT)  # not held against the sampler: nothing is sampled
        where = f"tunings.{self.name}.arms.{self.arm}"
        params, recipe = tuned.arms[self.arm].settings(self.arm, params, recipe, self.chosen, where)
        return replace(project.on_set(tuned.set, params), recipe=recipe)


def run_tuning(name: str, study: Study, workers: int) -> None:
    """Tune all arms, one trial of each after the other; write `reports/study/tuning_<name>.csv`."""
    tuned = study.all_tunings[name]
    choosers = {arm: Chooser(tuning.space, tuned.seed) for arm, tuning in tuned.arms.items()}
    rows: list[dict[str, Any]] = []
    keys: set[str] = set()
    for number in range(tuned.trials):
        tasks = [Task(study, name, arm, number, chooser.ask()) for arm, chooser in choosers.items()]
        losses = dict(run_all(loss_of, tasks, workers, "trial", _bar(tuned, number), threads=THREADS))
        keys |= losses.keys()
        for task in tasks:
            choosers[task.arm].tell(losses[task.key])
            rows.append({"arm": task.arm, "trial": number, "heldout_loss": losses[task.key], **task.chosen})
    write_csv(STUDY_REPORTS / f"tuning_{name}.csv", pd.DataFrame(rows).sort_values(["arm", "trial"]))
    fold_records(ROOT, "tuning", name, keep=keys)
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


def _bar(tuned: Tuned, number: int) -> WorkBar:
    """How far all trials are, when those of one number are at work."""
    arms = len(tuned.arms)
    work = Work(
        [tuned.train_flops] * arms,
        before=number * arms * tuned.train_flops,
        after=(tuned.trials - number - 1) * arms * tuned.train_flops,
    )
    return WorkBar(f"trial {number + 1} of {tuned.trials}, {arms} arms", work)
