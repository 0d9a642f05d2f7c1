"""One arm with one seed, trained and judged in this process: what studies and searches are made of.

A trial's settings are a whole `Params` with a single arm. Its record holds the rows of all its phases, and behind them,
if it was judged, one row a snapshot. A trial that was killed goes on where it was.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.config.params import Arm, MaskedPhase, Params, Phase
from maskdm.config.reading import flat, validated
from maskdm.engine import train
from maskdm.engine.judge import Judge, judge_all
from maskdm.engine.project import Project, exclusive, identity, initial_network, now, phase_settings, run_params
from maskdm.runtime.errors import DivergedError, StoppedEarly
from maskdm.runtime.paths import ROOT
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import Machine, Record, Stage, distance_metric, write_record
from maskdm.training.checkpoint import save_snapshot, snapshot_folder
from maskdm.training.loop import Row
from maskdm.training.plan import PhasePlan, arm_plans, peak_memory_bytes

Watch = Callable[[Row], None]


@dataclass(frozen=True)
class Result:
    """A trial's record and where, when and how fast it came about."""

    record: Record
    machine: Machine


def trial_params(
    params: Params,
    arm: str,
    pretrain: tuple[MaskedPhase, ...],
    finetune: Phase,
    seed: int,
    train_flops: float,
    snapshots: tuple[float, ...] = (1.0,),
) -> Params:
    """The settings `params` with another seed and budget, and with one arm only.

    Raises:
        MaskDMError: the arm does not fit the settings.
    """
    key = arm if pretrain else "none"
    changed = {
        "seed": seed,
        "budget": {"train_flops": train_flops, "snapshots": snapshots},
        "pretrain": {key: [phase.model_dump() for phase in pretrain]},
        "arms": {arm: Arm(pretrain=key, finetune=finetune).model_dump()},
        "baseline": arm,
    }
    return validated(Params, params.model_dump() | changed, where=f"arm {arm}")


def trial_plans(project: Project) -> tuple[PhasePlan, ...]:
    """All phases of the project's one arm that have steps."""
    (arm,) = project.params.arms
    return arm_plans(project.params, project.recipe, arm)


def trial_identity(project: Project, judged: bool) -> str:
    """The trial's fingerprint; names do not count, so that equal arms of two studies are one trial."""
    params, recipe = project.params, project.recipe
    ((_, arm),) = params.arms.items()
    decisive = {"seed", "model", "budget", "heldout", *(("sampling", "evaluation") if judged else ())}
    return identity(
        project,
        params.model_dump(include=decisive, exclude={"evaluation": {"weights"}}, exclude_defaults=True),
        recipe.model_dump(exclude={"optimisation", "handover"}, exclude_defaults=True),
        [phase_settings(phase, recipe) for phase in (*params.pretrain[arm.pretrain], arm.finetune)],
    )


def run_trial(
    project: Project, stage: Stage, key: str, judged: bool, watch: Watch = lambda _: None, extra: Mapping[str, Any] = {}
) -> Result:
    """Train the project's one arm, judge it if asked to, and write the record `records/<stage>/<key>.json`.

    Args:
        project: its settings have one arm (`trial_params`).
        stage: what the trial belongs to.
        key: names the trial: `<study>/<name>`.
        judged: whether samples are drawn and compared with real images.
        watch: called with each row as it is measured; what it raises ends the trial, `StoppedEarly` for good.
        extra: further parameters for the record.

    Raises:
        MaskDMError: a setting or a file is not usable, or the loss is not finite.
    """
    started_at, plans = now(), trial_plans(project)
    ((arm, settings),) = project.params.arms.items()
    params = run_params(project, settings.pretrain, plans) | dict(extra)
    if judged:
        params |= flat(project.params.model_dump(include={"sampling", "evaluation"}))
    record = project.record(stage, key, arm, trial_identity(project, judged), params)
    folder = ROOT / "work" / "trials" / record.identity / "state"
    with discarded(folder.parent), exclusive(folder):
        with mlflow_store.live_run(ROOT, record) as run:
            start = initial_network(project.params, project.data.info["num_classes"]).to(project.device)
            trained = train.train_phases(project, plans, start, folder, run.log_history, watch)
            memory = peak_memory_bytes(project.device)  # before judging, which takes more than small networks do
            history, seconds = trained.history, trained.seconds
            summary = {name: history[-1][name] for name in train.SUMMARY}
            if judged:
                rows = judge_snapshots(project, arm, trained, folder)
                flops = [row["train_flops"] for row in history]
                seconds = [*seconds, *(float(np.interp(row["train_flops"], flops, seconds)) for row in rows)]
                history = [*history, *rows]
                summary |= {name: rows[-1][name] for name in (distance_metric(rows[-1]), "kid", "precision", "recall")}
            images = sum(plan.steps * plan.batch_size for plan in plans)
            machine = replace(
                project.machine(started_at, trained.seconds[-1], images, seconds), peak_memory_bytes=memory
            )
            run.log_history(history)
            run.log_machine(machine)
            result = Result(replace(record, summary=summary, history=history), machine)
        write_record(ROOT, result.record, machine)  # last: who finds it takes the trial for done
    return result


@contextmanager
def discarded(folder: Path) -> Iterator[None]:
    """Remove `folder` when the trial is over, stopped early or diverged: nothing is left to resume. Else it stays."""
    try:
        yield
    except (StoppedEarly, DivergedError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def judge_snapshots(project: Project, arm: str, trained: train.Trained, folder: Path) -> list[dict[str, Any]]:
    """The rows of the snapshots that were taken on the way, and of the final weights."""
    save_snapshot(folder / "weights", trained.network)
    shares = project.params.budget.snapshots
    snapshots = {share: snapshot_folder(folder, share) if share < 1 else folder / "weights" for share in shares}
    rows, _ = judge_all(Judge.open(project, arm, folder), snapshots, log=lambda _: None)
    return rows
