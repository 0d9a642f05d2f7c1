"""What the stages `pretrain` and `finetune` share: train phases one after another, keep weights, write the record."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from maskdm.engine.project import Project, exclusive, identity, now, plan_as_json, run_params
from maskdm.networks.uvit import UViT
from maskdm.runtime.paths import ROOT, snapshots_folder, state_file, weights_folder, work_folder
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import Machine, Record, write_record
from maskdm.training.bfloat16 import quick_products
from maskdm.training.checkpoint import network_sha256, save_checkpoint, save_snapshot
from maskdm.training.loop import LogHistory, PhaseResult, PhaseTrainer, Row, State, make_heldout_loss
from maskdm.training.objective import noise_schedule
from maskdm.training.plan import PhasePlan

TrainingStage = Literal["pretrain", "finetune"]
SUMMARY = ("images_seen", "train_flops", "loss", "heldout_loss")  # final values


@dataclass(frozen=True)
class Trained:
    """All phases of a stage, joined."""

    network: UViT  # EMA weights of the last phase
    state: State | None  # of the last phase; None: nothing was trained
    history: list[Row]
    seconds: list[float]  # at each row, from the start of the stage


def run_stage(
    project: Project,
    stage: TrainingStage,
    key: str,
    arm: str,
    plans: tuple[PhasePlan, ...],
    start: UViT,
    before: State | None = None,
) -> None:
    """Train `start` through `plans` and write the stage's weights, snapshots and record. Goes on after a kill.

    All processes train; the main one holds the work folder, tracks the run and writes. `before` is the state of the
    phase before, whose EMA weights `start` holds: a fingerprint of those is one of both.
    """
    started_at = now()
    plans = tuple(plan for plan in plans if plan.steps)
    run_identity = identity(
        project,
        [stage, key, project.params.seed, network_sha256(start), project.params.heldout.model_dump()],
        project.recipe.model_dump(),
        [plan_as_json(plan) for plan in plans],
    )
    params = run_params(project, project.params.arms[arm].pretrain, plans)
    record = project.record(stage, key, arm, run_identity, params)
    folder = work_folder(stage, key, run_identity)
    if not project.processes.is_main:
        train_phases(project, plans, start, folder, log=lambda _: None, before=before)
        return
    if not plans:  # the drawn weights of `scratch`, or an arm that is masked all the way: no run
        keep_results(project, record, plans, Trained(start, before, [], []), folder, started_at)
        return
    with exclusive(folder), mlflow_store.live_run(ROOT, record) as run:
        trained = train_phases(project, plans, start, folder, run.log_history, before=before)
        run.log_machine(keep_results(project, record, plans, trained, folder, started_at))
        run.log_artifact(weights_folder(stage, key))
    shutil.rmtree(folder.parent, ignore_errors=True)  # the results are safe: nothing is left to resume


def train_phases(
    project: Project,
    plans: tuple[PhasePlan, ...],
    start: UViT,
    folder: Path,
    log: LogHistory,
    watch: Callable[[Row], None] = lambda _: None,
    before: State | None = None,
) -> Trained:
    """Train through `plans`, each phase from the EMA weights of the one before, or from its whole state."""
    if not plans:
        return Trained(start, before, [], [])
    project.processes.wait()  # no process reads the folder before the main one holds it
    recipe, params = project.recipe, project.params
    schedule = noise_schedule(recipe.num_train_timesteps, recipe.beta_schedule, recipe.prediction_type)
    heldout = make_heldout_loss(
        start, schedule, project.data, params.heldout.images, params.seed, project.device, project.processes
    )
    trained = Trained(start, before, [], [])
    for plan in plans:
        trainer = PhaseTrainer(
            network=copy.deepcopy(trained.network).requires_grad_(True),
            schedule=schedule,
            data=project.data,
            plan=plan,
            heldout_loss=heldout,
            seed=params.seed,
            folder=folder,
            log=_after(trained.history, log),
            processes=project.processes,
            watch=watch,
            before=trained.state if plan.goes_on else None,
        )
        with quick_products(project.device):
            trained = _joined(trained, trainer.run())
    return trained


def keep_results(
    project: Project, record: Record, plans: tuple[PhasePlan, ...], trained: Trained, folder: Path, started_at: str
) -> Machine:
    """Write the stage's weights, the snapshots taken on the way and the record; returns its machine part."""
    weights, snapshots = weights_folder(record.stage, record.key), snapshots_folder(record.stage, record.key)
    save_snapshot(weights, trained.network)
    hand_over(record, plans, trained)
    shutil.rmtree(snapshots, ignore_errors=True)
    if (folder / "snapshots").is_dir():
        shutil.copytree(folder / "snapshots", snapshots)
    images = sum(plan.steps * plan.batch_size for plan in plans)
    machine = project.machine(started_at, trained.seconds[-1] if plans else 0.0, images, trained.seconds)
    final = trained.history[-1] if plans else {}
    summary = {name: final[name] for name in SUMMARY if name in final}
    write_record(ROOT, replace(record, summary=summary, history=trained.history), machine)
    return machine


def hand_over(record: Record, plans: tuple[PhasePlan, ...], trained: Trained) -> None:
    """Keep the state of a pre-training whose fine-tuning goes on from it; beside the weights it is of no other use."""
    path = state_file(record.key)
    if record.stage == "pretrain":
        path.unlink(missing_ok=True)
        if trained.state and plans[-1].handover == "state":
            save_checkpoint(path, trained.state)


def _after(before: list[Row], log: LogHistory) -> LogHistory:
    """Log a phase's rows behind those of the phases before it."""
    return lambda rows: log(before + rows)


def _joined(before: Trained, phase: PhaseResult) -> Trained:
    offset = before.seconds[-1] if before.seconds else 0.0
    seconds = before.seconds + [offset + s for s in phase.seconds]
    return Trained(phase.network, phase.state, before.history + phase.history, seconds)
