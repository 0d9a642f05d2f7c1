"""The places of the files that stages hand to each other."""

from pathlib import Path

ROOT = Path()  # stages run in the project's root, as DVC does
RAW = ROOT / "data" / "raw"
PREPARED = ROOT / "data" / "prepared"
REFERENCE = ROOT / "data" / "reference"
STEP_TIME = ROOT / "records" / "step_time.json"
STUDY = ROOT / "study" / "params.yaml"
STUDY_REPORTS = ROOT / "reports" / "study"
STUDY_STEP_TIME = ROOT / "records" / "study_step_time.json"


def work_folder(stage: str, key: str, identity: str) -> Path:
    """Where a stage keeps what it resumes from. Other settings, data or code are another folder."""
    return ROOT / "work" / f"{stage}-{key}" / identity


def weights_folder(stage: str, key: str) -> Path:
    """Final EMA weights of a training stage."""
    return ROOT / "runs" / stage / key / "weights"


def state_file(key: str) -> Path:
    """The whole state at the end of a pre-training that hands it over."""
    return ROOT / "runs" / "pretrain" / key / "state.pt"


def snapshots_folder(stage: str, key: str) -> Path:
    """Snapshots of a training stage."""
    return ROOT / "runs" / stage / key / "snapshots"
