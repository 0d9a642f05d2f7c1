"""The record files of a stage: what it computed (the same on every machine), and where, when and how fast.

They are committed to git; the report and the tracking store are made from them.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from maskdm.errors import MaskDMError
from maskdm.files import write_atomically
from maskdm.units import percent

if TYPE_CHECKING:
    import torch

Stage = Literal["pretrain", "finetune", "evaluate", "study", "search", "large_search"]
# A change there does not change what a run computes.
WRITTEN_BY_A_RUN = ("records", "reports", "dvc.lock", "study/dvc.lock")


@dataclass(frozen=True)
class Record:
    """What a stage computed. Equal settings, data and code give equal bytes: nothing of the machine is in it."""

    stage: Stage
    key: str  # key of `pretrain`, or the arm; of a trial `<study>/<name>`
    arm: str  # the arm it belongs to; a pre-training that several arms share: the first of them
    identity: str  # fingerprint of settings, data and code: what tells one run from another
    params: dict[str, Any]  # flat, the same names in every record
    data: dict[str, Any]  # name, sha256, train, heldout, shape
    summary: dict[str, int | float]  # final values
    history: list[dict[str, Any]]  # one row a measurement

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Machine:
    """Where, when and how fast a record came about."""

    started_at: str  # ISO 8601, UTC
    git: dict[str, Any]  # of `git_state`
    dvc: dict[str, Any]  # of `dvc_state`
    hardware: dict[str, Any]  # of `hardware`
    stage_seconds: float  # training, or sampling and comparing, of the whole stage
    images_per_second: float | None  # None: the stage did nothing (no pre-training)
    peak_memory_bytes: int | None  # None: not measured
    seconds: list[float]  # per row of the history: training so far; evaluate: that row alone
    record_sha256: str = ""  # of the record's bytes; `write_record` fills it in

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class StepTimes:
    """Seconds of training steps, all timed in turn, and where and when: what comparisons of time are made from."""

    started_at: str  # ISO 8601, UTC
    git: dict[str, Any]  # of `git_state`
    hardware: dict[str, Any]  # of `hardware`
    seconds: dict[str, list[float]]  # arm -> of a step of each of its phases in sequence
    spread: float  # of `step_time.spread`: how steady the machine was

    __pydantic_config__ = ConfigDict(extra="forbid")

    def of(self, arm: str, phase: int) -> float:
        """Seconds of a step of one phase of an arm.

        Raises:
            MaskDMError: it was not measured.
        """
        phases = self.seconds.get(arm, [])
        if phase >= len(phases):
            raise MaskDMError(f"step time of {arm}, phase {phase}: not measured; the stage `step_time` measures it")
        return phases[phase]

    @property
    def machine(self) -> str:
        """The hardware, the code and how steady it was in words: `AMD EPYC, 2 cores; commit 5b6088b; spread 3 %`."""
        device, processes = self.hardware["device"], self.hardware["processes"]
        name = f"{self.hardware['cpu']}, {self.hardware['cores']} cores" if device == "cpu" else device
        shared = f", {processes} processes" if processes > 1 else ""
        commit = f"; commit `{self.git['commit'][:7]}`" if self.git["commit"] else ""
        return f"{name}{shared}{commit}; spread {percent(self.spread)}"


R = TypeVar("R", Record, Machine, StepTimes)


def record_path(root: Path, stage: str, key: str) -> Path:
    """`records/<stage>/<key>.json` below `root`."""
    return root / "records" / stage / f"{key}.json"


def write_record(root: Path, record: Record, machine: Machine) -> None:
    """Write both files of a stage, each all or nothing.

    Raises:
        MaskDMError: a value is not finite, or the disk does not take the file.
    """
    path = record_path(root, record.stage, record.key)
    content = _to_json(path, record)
    machine = replace(machine, record_sha256=hashlib.sha256(content).hexdigest())
    write_atomically(path, lambda file: file.write(content))
    timing = _to_json(_machine_path(path), machine)
    write_atomically(_machine_path(path), lambda file: file.write(timing))


def read_records(root: Path, stages: tuple[Stage, ...] = get_args(Stage)) -> list[tuple[Record, Machine | None]]:
    """All records of some stages below `root`, in the order of the stages, then of the keys.

    The second part is None where the file is missing, or belongs to another version of the record (DVC's run
    cache restores a record, but not the time it once took).

    Raises:
        MaskDMError: a file is not valid JSON, or not a record.
    """
    paths = [path for stage in stages for path in sorted((root / "records" / stage).rglob("*.json"))]
    return [_read_pair(path) for path in paths if not path.match("*.machine.json")]


def read_record(root: Path, stage: Stage, key: str) -> tuple[Record, Machine | None] | None:
    """One record, as `read_records` has it; None if there is no such file.

    Raises:
        MaskDMError: the file is not valid JSON, or not a record.
    """
    path = record_path(root, stage, key)
    return _read_pair(path) if path.is_file() else None


def write_step_times(path: Path, times: StepTimes) -> None:
    """Write the whole file or nothing.

    Raises:
        MaskDMError: a value is not finite, or the disk does not take the file.
    """
    content = _to_json(path, times)
    write_atomically(path, lambda file: file.write(content))


def read_step_times(path: Path) -> StepTimes:
    """What `write_step_times` wrote.

    Raises:
        MaskDMError: there is no such file, or it is not valid.
    """
    if not path.is_file():
        raise MaskDMError(f"{path}: no such file; the stage `step_time` writes it")
    return _read(path, StepTimes)


def remove_records(root: Path, stage: Stage, keep: Collection[str], under: str = "") -> None:
    """Delete the records of a stage, of those whose key begins with the folder `under`, except the keys `keep`."""
    folder = root / "records" / stage
    for path in sorted((folder / under).rglob("*.json")):
        if str(path.relative_to(folder)).removesuffix(".json").removesuffix(".machine") not in keep:
            path.unlink()


def _read_pair(path: Path) -> tuple[Record, Machine | None]:
    record = _read(path, Record)
    return record, _matching_machine(path, record)


def _matching_machine(path: Path, record: Record) -> Machine | None:
    if not _machine_path(path).is_file():
        return None
    machine = _read(_machine_path(path), Machine)
    if machine.record_sha256 != hashlib.sha256(path.read_bytes()).hexdigest():
        return None
    if len(machine.seconds) != len(record.history):
        raise MaskDMError(
            f"{_machine_path(path)}: {len(machine.seconds)} timings; allowed: {len(record.history)}, "
            "as many as the record has rows"
        )
    return machine


def _machine_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.machine.json")


def _to_json(path: Path, content: Record | Machine | StepTimes) -> bytes:
    try:
        text = json.dumps(asdict(content), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except ValueError:
        raise MaskDMError(f"{path}: a value is NaN or infinite; allowed: finite numbers") from None
    return f"{text}\n".encode()


def _read(path: Path, kind: type[R]) -> R:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise MaskDMError(f"{path}: not a valid record: {where + ': ' if where else ''}{problem['msg']}") from None


# --- facts about the machine and the checkout ---------------------------------------------------------------


def git_state(root: Path) -> dict[str, Any]:
    """`commit`, `branch` (None if detached) and `dirty` of the checkout at `root`; all None where there is none.

    `dirty` counts new files too, but not what a run itself writes.
    """
    status = _git(root, "status", "--porcelain", "--", ".", *(f":(exclude){path}" for path in WRITTEN_BY_A_RUN))
    return {
        "commit": _git(root, "rev-parse", "--verify", "--quiet", "HEAD") or None,
        "branch": _git(root, "symbolic-ref", "--short", "--quiet", "HEAD") or None,
        "dirty": None if status is None else bool(status),
    }


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None if git is missing or fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def dvc_state(root: Path) -> dict[str, Any]:
    """`stage`: the DVC stage that runs now; `data_md5`: the prepared data's hash in `dvc.lock`. None: not known."""
    return {"stage": os.environ.get("DVC_STAGE"), "data_md5": _data_md5(root / "dvc.lock")}


def _data_md5(lock: Path) -> str | None:
    try:
        stages = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))["stages"]
        return next(str(out["md5"]) for out in stages["prepare"]["outs"] if out["path"] == "data/prepared")
    except (OSError, YAMLError, KeyError, TypeError, StopIteration):  # no lock yet, or no `prepare` in it
        return None


def hardware(device: "torch.device", processes: int) -> dict[str, Any]:
    """What a stage runs on: `device`, `cpu`, `cores` (that it may use), `processes`, `torch`, `precision`.

    Device, CPU and cores are the main process's; `precision` is that of matrix products.
    """
    import torch

    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "cpu": _cpu_name(),
        "cores": count_cores(),
        "processes": processes,
        "torch": str(torch.__version__),
        "precision": "bfloat16" if on_gpu else "float32",
    }


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    """The CPU's model; on Linux `platform` knows only the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
