"""The places of the files that stages hand to each other."""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path()  # stages run in the project's root, as DVC does
PARAMS = ROOT / "params.yaml"
PROFILES = ROOT / "profiles"
PREPARED = ROOT / "data" / "prepared"
REFERENCE = ROOT / "data" / "reference"
REFERENCE_RECORD = ROOT / "records" / "reference.json"
STEP_TIME = ROOT / "records" / "step_time.json"
STUDY = ROOT / "study" / "params.yaml"
STUDY_REPORTS = ROOT / "reports" / "study"
STUDY_STEP_TIME = ROOT / "records" / "study_step_time.json"
SEARCH_REPORTS = ROOT / "reports" / "search"
OWN = "own"  # the folder of what a data set of the study is judged by
INDEX = ROOT / "reports" / "index.html"


def own_project() -> Path:
    """Where the user's raw files are, which git ignores.

    It is the project's root, but not in `dvc exp run --temp` or `--queue`: these run in a copy without ignored files,
    below the project's `.dvc`, and say in DVC_ROOT where the project is.
    """
    home = os.path.realpath(os.environ.get("DVC_ROOT", ""))
    return Path(home) if Path(os.path.realpath(ROOT)).is_relative_to(Path(home) / ".dvc") else ROOT


@dataclass(frozen=True)
class DataPlaces:
    """Where the stages keep a data set."""

    prepared: Path  # the array; of a data set of the study, its `others` are beside it
    reference: Path  # folder with what samples are compared with
    record: Path  # the floor of that comparison


def places_of(data_set: str | None) -> DataPlaces:
    """The places of a data set of the study, or, of None, of that of `params.yaml`."""
    if data_set is None:
        return DataPlaces(PREPARED, REFERENCE, REFERENCE_RECORD)
    folder, record = ROOT / "data" / "sets" / data_set, ROOT / "records" / f"reference-{data_set}.json"
    return DataPlaces(folder / "prepared" / OWN, folder / "reference", record)


def stage_folder(stage: str, arm: str, seed: int) -> Path:
    """What a stage of `params.yaml` leaves of one trial."""
    return ROOT / "runs" / stage / arm / str(seed)


def samples_file(share: float) -> str:
    """The first samples of the snapshot at a share of the budget, in the folder of `evaluate`."""
    return "samples.npy" if share == 1 else f"samples-{share}.npy"


def work_folder(stage: str, arm: str, seed: int, identity: str) -> Path:
    """Where a stage keeps what it resumes from. Other settings or data are another folder."""
    return ROOT / "work" / f"{stage}-{arm}-{seed}" / identity
