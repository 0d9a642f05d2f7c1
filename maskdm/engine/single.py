"""One arm with one seed, trained on its own: `maskdm train`, and what `maskdm reproduce` trains.

It is the trial that the comparison makes. It leaves its weights in `runs/train/<arm>/<seed>/`, and nothing in
`records/`: those hold what the comparisons ask for, and no more.
"""

import shutil
from pathlib import Path

from maskdm.engine.project import Project
from maskdm.engine.train import Trained
from maskdm.engine.trial import Result, run_trial, trial_identity, work_of
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import stage_folder
from maskdm.tracking.records import Record, read_record_at, write_record_at
from maskdm.training.checkpoint import save_snapshot

RECORD = "record.json"


def train_alone(project: Project, judged: bool, name: str | None = None) -> tuple[Path, Record]:
    """Train the project's one trial, unless that is done; it goes on where it was stopped.

    Args:
        project: its settings have one arm and one seed.
        judged: whether samples are drawn and compared with real images, too.
        name: stands for the arm's in the folder; None: the arm's.

    Returns:
        The folder with `weights/` and the record, and the record.

    Raises:
        MaskDMError: a setting or a file is not usable, or the loss is not finite.
    """
    params = project.params
    name = name or params.arm
    out = stage_folder("train", name, params.seed)
    identity = trial_identity(project, judged)
    if (out / RECORD).is_file():
        record = read_record_at(out / RECORD)
        if record.identity == identity and (out / "weights").is_dir():
            shutil.rmtree(work_of(identity), ignore_errors=True)  # left by a kill just after the record was written
            return out, record

    def keep(result: Result, trained: Trained) -> None:
        shutil.rmtree(out, ignore_errors=True)  # of other settings; the record comes last
        save_snapshot(out / "weights", trained.network, project.recipe.objective)
        write_record_at(out / RECORD, result.record)

    return out, run_trial(project, "train", f"{name}/{params.seed}", judged, keep=keep, as_model=True).record


def one_trial(project: Project, arm: str, seed: int | None) -> Project:
    """The project with the settings of one trial; without a seed, with the first of the settings.

    Raises:
        MaskDMError: there is no such arm.
    """
    if arm not in project.params.arms:
        raise MaskDMError(f"arm {arm}; allowed: {', '.join(project.params.arms)}")
    return project.trial(arm, project.params.seeds[0] if seed is None else seed)
