"""One arm with one seed, trained and judged: what comparisons and searches are made of.

A trial's settings are a whole `Params` with one arm and one seed. Its record holds the rows of all its phases, and
behind them, if it was judged, one row a snapshot. A trial that was killed goes on where it was.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.config.objective import flat_settings
from maskdm.config.reading import flat
from maskdm.engine import model, train
from maskdm.engine.judge import Judge, judge_all
from maskdm.engine.project import Project, arm_settings, exclusive, identity, initial_network, now, trial_params
from maskdm.runtime.errors import DivergedError, StoppedEarly
from maskdm.runtime.paths import ROOT
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import OF_SAMPLES, Machine, Record, Stage, distance_metric, read_record, write_record
from maskdm.training.checkpoint import save_snapshot, snapshot_folder
from maskdm.training.loop import Row
from maskdm.training.plan import PhasePlan, arm_plans, peak_memory_bytes

Watch = Callable[[Row], None]
SUMMARY = ("images_seen", "train_flops", "loss", "heldout_loss")  # final values


@dataclass(frozen=True)
class Result:
    """A trial's record and where, when and how fast it came about."""

    record: Record
    machine: Machine


Keep = Callable[[Result, train.Trained], None]


def trial_plans(project: Project) -> tuple[PhasePlan, ...]:
    """All phases of the project's one arm that have steps."""
    return arm_plans(project.params, project.recipe, project.params.arm)


def trial_identity(project: Project, judged: bool) -> str:
    """The trial's fingerprint; names do not count, so that equal arms of two comparisons are one trial."""
    params, recipe = project.params, project.recipe
    decisive = {"model", "budget", "heldout", *(("sampling", "evaluation") if judged else ())}
    settings = params.model_dump(include=decisive, exclude={"evaluation": {"weights"}}, exclude_defaults=True)
    seen = {name: data.info["sha256"] for name, data in project.sets.items()}
    return identity(
        project,
        settings | {"seed": params.seed},
        flat_settings(recipe.objective),
        arm_settings(params.arms[params.arm], recipe),
        *([seen] if seen else []),
    )


def open_record(project: Project, stage: Stage, key: str, judged: bool, extra: Mapping[str, Any] = {}) -> Record:
    """The record of the project's one trial, before anything is measured."""
    params = trial_params(project, trial_plans(project)) | dict(extra)
    if judged:
        params |= flat(project.params.model_dump(include={"sampling", "evaluation"}))
    return project.record(stage, key, trial_identity(project, judged), params)


def finish(project: Project, record: Record, history: list[Row], timing: train.Timing, judged: list[Row]) -> Result:
    """The whole record of a trial: the rows of its training, and those of its snapshots, if it was judged."""
    seconds = timing.seconds
    summary = {name: history[-1][name] for name in SUMMARY}
    flops = [row["train_flops"] for row in history]
    at_snapshots = [float(np.interp(row["train_flops"], flops, seconds)) for row in judged]
    if judged:
        names = (distance_metric(judged[-1]), *OF_SAMPLES)
        summary |= {name: judged[-1][name] for name in names if name in judged[-1]}  # an older version measured fewer
    machine = project.machine(
        timing.started_at, seconds[-1], int(history[-1]["images_seen"]), [*seconds, *at_snapshots], timing.memory
    )
    return Result(replace(record, summary=summary, history=[*history, *judged]), machine)


def keep_record(result: Result, trained: train.Trained) -> None:
    """Write `records/<stage>/<key>.json`; the weights go."""
    write_record(ROOT, result.record, result.machine)


def run_trial(
    project: Project,
    stage: Stage,
    key: str,
    judged: bool,
    watch: Watch = lambda _: None,
    extra: Mapping[str, Any] = {},
    keep: Keep = keep_record,
    as_model: bool = False,
) -> Result:
    """Train the project's one trial, judge it if asked to, and keep what comes of it.

    Args:
        project: its settings have one arm and one seed.
        stage: what the trial belongs to.
        key: names the trial: `<comparison>/<name>`.
        judged: whether samples are drawn and compared with real images.
        watch: called with each row as it is measured; what it raises ends the trial, `StoppedEarly` for good.
        extra: further parameters for the record.
        keep: called at the end, before what the trial resumes from goes.
        as_model: whether MLflow gets the weights. Hundreds of trials whose weights go would flood it.

    Raises:
        MaskDMError: a setting or a file is not usable, or the loss is not finite.
    """
    started_at, record = now(), open_record(project, stage, key, judged, extra)
    folder = work_of(record.identity) / "state"
    with discarded(folder.parent), exclusive(folder):
        with mlflow_store.live_run(ROOT, record) as run:
            start = initial_network(project.params, project.data.info["num_classes"]).to(project.device)
            trained = train.train_phases(project, trial_plans(project), start, folder, run.log_history, watch)
            memory = peak_memory_bytes(project.device)  # before judging, which takes more than small networks do
            rows = judge_snapshots(project, trained, folder) if judged else []
            result = finish(project, record, trained.history, train.Timing(started_at, memory, trained.seconds), rows)
            run.log_history(result.record.history)
            run.log_machine(result.machine)
            if as_model:
                save_snapshot(folder / "weights", trained.network, project.recipe.objective)
                run.log_model(model.as_model(folder / "weights", project.recipe.objective, project.params.sampling))
        keep(result, trained)  # last: who finds the record takes the trial for done
    return result


def recorded(stage: Stage, project: Project, key: str, judged: bool) -> Record | None:
    """The record of a trial, if there is one of just these settings and data."""
    known, trial = read_record(ROOT, stage, key), trial_identity(project, judged)
    if known is None or known[0].identity != trial or known[1] is None:  # a damaged one does not fit its machine part
        return None
    shutil.rmtree(work_of(trial), ignore_errors=True)  # left by a kill just after the record was written
    return known[0]


def work_of(trial: str) -> Path:
    """Where a trial of this identity keeps what it resumes from."""
    return ROOT / "work" / "trials" / trial


@contextmanager
def discarded(folder: Path) -> Iterator[None]:
    """Remove `folder` when the trial is over, stopped early or diverged: nothing is left to resume. Else it stays."""
    try:
        yield
    except (StoppedEarly, DivergedError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def judge_snapshots(project: Project, trained: train.Trained, folder: Path) -> list[Row]:
    """The rows of the snapshots that were taken on the way, and of the final weights."""
    save_snapshot(folder / "weights", trained.network, project.recipe.objective)
    shares = project.params.budget.snapshots
    snapshots = {share: snapshot_folder(folder, share) if share < 1 else folder / "weights" for share in shares}
    return judge_all(Judge.open(project, folder), snapshots, log=lambda _: None)
