"""Training of phases one after another, and what a stage keeps of it."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import TypeAdapter

from maskdm.config.objective import ObjectiveSettings
from maskdm.engine.project import Project
from maskdm.networks.network import Network
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import check_checksums, reading, write_atomically, write_checksums
from maskdm.training.checkpoint import load_checkpoint, load_snapshot, save_checkpoint, save_snapshot
from maskdm.training.loop import LogHistory, PhaseResult, PhaseTrainer, Row, State, make_heldout_loss
from maskdm.training.objective import make_objective
from maskdm.training.plan import PhasePlan

T = TypeVar("T")
REMEDY = "delete {}, and `dvc repro` trains it again"


@dataclass(frozen=True)
class Trained:
    """What phases in sequence leave behind; the rows are those of these phases and of all before them."""

    network: Network  # EMA weights of the last phase
    state: State | None  # of the last phase; None: nothing was trained, or the next phase does not go on from it
    history: list[Row]
    seconds: list[float]  # of training at each row


@dataclass(frozen=True)
class Timing:
    """`timing.json` of a stage: when, how fast and in how much memory it and the stages before it trained."""

    started_at: str  # ISO 8601, UTC
    memory: int | None  # most bytes held
    seconds: list[float]  # of training at each row


@dataclass(frozen=True)
class Training:
    """`training.json` of a stage: what it and the stages before it measured, the same on every machine."""

    identity: str  # of what was trained: who finds another one trains again
    history: list[dict[str, int | float]]
    trial: str = ""  # the identity of the whole trial, by its settings and data; an older version did not say it


def train_phases(
    project: Project,
    plans: tuple[PhasePlan, ...],
    start: Network,
    folder: Path,
    log: LogHistory,
    watch: Callable[[Row], None] = lambda _: None,
    before: Trained | None = None,
) -> Trained:
    """Train through `plans`, each phase from the EMA weights of the one before, or from its whole state.

    Args:
        project: with the settings of one trial.
        plans: those that have steps.
        start: the weights that the first phase starts from, on the device to train on.
        folder: for checkpoints and snapshots.
        log: called with all rows so far whenever they are safe in a checkpoint.
        watch: called with each row as it is measured.
        before: of the phases before; `start` holds its weights.
    """
    trained = before or Trained(start, None, [], [])
    if not plans:
        return trained
    project.processes.wait()  # no process reads the folder before the main one holds it
    params, objective = project.params, make_objective(project.recipe.objective)
    heldout = make_heldout_loss(
        start, objective, project.data, params.heldout.images, params.seed, project.device, project.processes
    )
    for plan in plans:
        trainer = PhaseTrainer(
            network=copy.deepcopy(trained.network).requires_grad_(True),
            objective=objective,
            data=project.training_data(plan),
            plan=plan,
            heldout_loss=heldout,
            seed=params.seed,
            folder=folder,
            log=_after(trained.history, log),
            processes=project.processes,
            watch=watch,
            before=trained.state if plan.goes_on else None,
        )
        trained = _joined(trained, trainer.run())
    return trained


def save_training(
    out: Path,
    objective: ObjectiveSettings,
    identity: str,
    trial: str,
    trained: Trained,
    timing: Timing,
    plans: tuple[PhasePlan, ...],
    work: Path,
) -> None:
    """Keep weights, snapshots, the state that fine-tuning goes on from, and at last `training.json`, in `out`."""
    shutil.rmtree(out, ignore_errors=True)
    save_snapshot(out / "weights", trained.network, objective)
    if trained.state and plans and plans[-1].handover == "state":
        save_checkpoint(out / "state.pt", trained.state)
    if (work / "snapshots").is_dir():
        shutil.copytree(work / "snapshots", out / "snapshots")
    _write(out / "timing.json", _as_json(timing))
    training = _as_json(Training(identity, trained.history, trial))
    write_checksums(out, later={"training.json": training})
    _write(out / "training.json", training)


def is_saved(out: Path, identity: str) -> bool:
    """Whether `out` holds what a stage of this identity trains.

    Raises:
        MaskDMError: it does, and a file is damaged.
    """
    if not (out / "training.json").is_file() or _read_json(out / "training.json", Training).identity != identity:
        return False
    check_checksums(out, REMEDY.format(out))
    return True


def load_training(out: Path) -> tuple[Training, Timing]:
    """What `save_training` wrote beside the weights.

    Raises:
        MaskDMError: a file is missing or damaged.
    """
    check_checksums(out, REMEDY.format(out))
    return _read_json(out / "training.json", Training), _read_json(out / "timing.json", Timing)


def load_trained(out: Path, device: torch.device, with_state: bool) -> tuple[Trained, Timing]:
    """What `save_training` kept in `out`, with its tensors on `device`.

    Raises:
        MaskDMError: a file is missing or damaged.
    """
    training, timing = load_training(out)  # first: it looks at the checksums of all files
    network = load_snapshot(out / "weights", device)
    state = load_checkpoint(out / "state.pt", device) if with_state else None
    if with_state and state is None:
        raise MaskDMError(f"{out / 'state.pt'}: no such file; {REMEDY.format(out)}")
    return Trained(network, state, training.history, timing.seconds), timing


def _as_json(content: Timing | Training) -> bytes:
    return json.dumps(asdict(content)).encode()


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def _read_json(path: Path, kind: type[T]) -> T:
    with reading(path, REMEDY.format(path.parent)):
        return TypeAdapter(kind).validate_json(path.read_bytes())


def _after(before: list[Row], log: LogHistory) -> LogHistory:
    """Log a phase's rows behind those of the phases before it."""
    return lambda rows: log(before + rows)


def _joined(before: Trained, phase: PhaseResult) -> Trained:
    offset = before.seconds[-1] if before.seconds else 0.0
    seconds = before.seconds + [offset + s for s in phase.seconds]
    return Trained(phase.network, phase.state, before.history + phase.history, seconds)
