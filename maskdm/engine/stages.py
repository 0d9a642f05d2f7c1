"""The stages of one trial of `params.yaml`: pre-training, fine-tuning, evaluation.

Each leaves what it made in `runs/<stage>/<arm>/<seed>/`. One that finds there what it would make does nothing; one that
was killed goes on. All processes work; the main one holds the work folder, tracks the run and writes.

python -m maskdm.engine.stages STAGE ARM SEED: what torchrun starts in several processes.
"""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from maskdm.config.study import DEFAULT
from maskdm.engine.judge import Judge, judge_all, save_samples
from maskdm.engine.model import as_model
from maskdm.engine.project import Project, exclusive, identity, initial_network, now, plan_as_json
from maskdm.engine.train import (
    Timing,
    Trained,
    is_saved,
    load_trained,
    load_training,
    save_training,
    train_phases,
)
from maskdm.engine.trial import finish, open_record, trial_identity
from maskdm.runtime.children import end_with_parent
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.files import check_checksums, write_atomically, write_checksums
from maskdm.runtime.paths import ROOT, samples_file, stage_folder, work_folder
from maskdm.runtime.processes import started_processes
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import Record, read_record, write_record
from maskdm.training.checkpoint import load_snapshot, network_sha256, snapshot_folder
from maskdm.training.plan import PhasePlan, peak_memory_bytes, plan_finetune, plan_pretrain


def pretrain(project: Project) -> None:
    """Train all phases of the project's one trial but the last, from freshly drawn weights.

    An arm of one phase leaves the drawn weights themselves.
    """
    plans = plan_pretrain(project.params, project.recipe, project.params.arm)
    network = initial_network(project.params, project.data.info["num_classes"]).to(project.device)
    _train(project, "pretrain", plans, Trained(network, None, [], []), None)


def finetune(project: Project) -> None:
    """Train the last phase of the project's one trial, with what its pre-training left of the budget.

    Raises:
        MaskDMError: the pre-training is missing or damaged.
    """
    plan = plan_finetune(project.params, project.recipe, project.params.arm)
    source = stage_folder("pretrain", project.params.arm, project.params.seed)
    before, timing = load_trained(source, project.device, with_state=plan.goes_on)
    _train(project, "finetune", (plan,), before, timing)


def evaluate(project: Project) -> None:
    """Judge all snapshots of the project's one trial and write its record.

    Raises:
        MaskDMError: a snapshot or the reference is missing or damaged.
    """
    params = project.params
    snapshots = find_snapshots(project)
    record = _record(project)
    weights = {share: network_sha256(load_snapshot(folder, project.device)) for share, folder in snapshots.items()}
    own_identity = identity(project, record.identity, weights)
    out = stage_folder("evaluate", params.arm, params.seed)
    work = work_folder("evaluate", params.arm, params.seed, own_identity)
    if _is_judged(out, own_identity, record, params.budget.snapshots):
        _discard(project, work)
        return
    judge = Judge.open(project, work)
    if not project.processes.is_main:
        judge_all(judge, snapshots, log=lambda _: None)
        return
    training, timing = load_training(stage_folder("finetune", params.arm, params.seed))
    with exclusive(work):
        with mlflow_store.live_run(ROOT, record) as run:
            judged = judge_all(judge, snapshots, lambda rows: run.log_history([*training.history, *rows]))
            result = finish(project, record, training.history, timing, judged)
            save_samples(out, work, params.budget.snapshots)
            run.log_machine(result.machine)
            run.log_artifact(out / "grid.png")
            run.log_model(as_model(snapshots[1], project.recipe.objective, params.sampling))
        # Last, and in this order: who finds them takes the trial for judged, and its run for ended.
        write_checksums(out, later={"identity": own_identity.encode()})
        write_record(ROOT, result.record, result.machine)
        write_atomically(out / "identity", lambda file: file.write(own_identity.encode()))
    _discard(project, work)


def _is_judged(out: Path, own_identity: str, record: Record, shares: Sequence[float]) -> bool:
    """Whether all that judging leaves is there: a user may have deleted the record, and an older version kept less."""
    path, known = out / "identity", read_record(ROOT, record.stage, record.key)
    kept = all((out / samples_file(share)).is_file() for share in shares)
    judged = (
        kept
        and known is not None
        and known[0].identity == record.identity
        and known[1] is not None  # a damaged one does not fit its machine part
        and path.is_file()
        and path.read_text() == own_identity
    )
    if judged:
        check_checksums(out, f"delete {out}, and the same command draws the samples again")
    return judged


STAGES: dict[str, Callable[[Project], None]] = {"pretrain": pretrain, "finetune": finetune, "evaluate": evaluate}


def run_seeds(stage: str, arm: str, seeds: Sequence[int]) -> None:
    """A stage of some trials, one after the other, in this process and those that torchrun started beside it."""
    with started_processes() as processes:
        processes.require_shared(ROOT / "work")
        project = Project.open(processes)
        for seed in seeds:
            STAGES[stage](project.trial(arm, seed))


def find_snapshots(project: Project) -> dict[float, Path]:
    """Share of the budget -> folder with the weights. Early shares may lie in the pre-training."""
    params = project.params
    folders = [stage_folder(stage, params.arm, params.seed) for stage in ("finetune", "pretrain")]
    found: dict[float, Path] = {}
    for share in params.budget.snapshots:
        places = [snapshot_folder(folder, share) for folder in folders]
        found[share] = folders[0] / "weights" if share == 1 else next(filter(Path.is_dir, places), places[0])
    return found


def _train(project: Project, stage: str, plans: tuple[PhasePlan, ...], before: Trained, earlier: Timing | None) -> None:
    """Train `before` through `plans`, unless that is done, and keep what comes of it.

    `before` holds the EMA weights and the state of the phase before: a fingerprint of the first is one of both.
    """
    params, started_at = project.params, now()
    plans = tuple(plan for plan in plans if plan.steps)
    own_identity = identity(
        project,
        [stage, params.seed, network_sha256(before.network), params.heldout.model_dump()],
        project.recipe.flat(),
        [plan_as_json(plan) for plan in plans],
    )
    out = stage_folder(stage, params.arm, params.seed)
    work = work_folder(stage, params.arm, params.seed, own_identity)
    if is_saved(out, own_identity):
        _discard(project, work)
        return

    def keep(trained: Trained) -> None:
        memory = max(peak_memory_bytes(project.device) if plans else 0, (earlier and earlier.memory) or 0)
        timing = Timing(earlier.started_at if earlier else started_at, memory, trained.seconds)
        trial = trial_identity(project, judged=False)
        save_training(out, project.recipe.objective, own_identity, trial, trained, timing, plans, work)

    if not project.processes.is_main:
        train_phases(project, plans, before.network, work, log=lambda _: None, before=before)
        return
    if not plans:  # the drawn weights of `scratch`, or an arm that is masked all the way: no run
        keep(before)
        return
    with exclusive(work):
        with mlflow_store.live_run(ROOT, _record(project)) as run:
            trained = train_phases(project, plans, before.network, work, run.log_history, before=before)
        keep(trained)  # last: who finds it takes the run for ended
    _discard(project, work)


def _discard(project: Project, work: Path) -> None:
    """Remove what a trial resumes from. A kill may come before it, so who finds the results calls it, too."""
    if project.processes.is_main:
        shutil.rmtree(work.parent, ignore_errors=True)


def _record(project: Project) -> Record:
    return open_record(project, DEFAULT, f"{project.params.arm}/{project.params.seed}", judged=True)


if __name__ == "__main__":
    end_with_parent()
    with exit_with_one_line():
        run_seeds(sys.argv[1], sys.argv[2], [int(seed) for seed in sys.argv[3:]])
