"""The record files of a stage: what it computed (the same on every machine), and where, when and how fast.

They are committed to git; the report and the tracking store are made from them.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import write_atomically, write_text
from maskdm.runtime.text import short
from maskdm.runtime.threads import count_cores
from maskdm.runtime.units import percent

if TYPE_CHECKING:
    import torch

# `train` has no records of its own below records/: `maskdm train` keeps them beside the weights.
Stage = Literal["default", "study", "search", "large_search", "tuning", "train"]
LINE_REMEDY = "restore the file with git, or delete the line, and what it records is done again"
LARGEST = 1e100  # of what a record's numbers may be: nothing measured is so large, and its square is finite
# Measures of samples beside the distance; old records lack the last ones.
OF_SAMPLES = ("kid", "precision", "recall", "density", "coverage", "nearest")
POSITIVE = ("heldout_loss", "train_flops")  # their logarithm is taken
# A change there does not change what a run computes.
WRITTEN_BY_A_RUN = ("records", "reports", "dvc.lock", "study/dvc.lock")


@dataclass(frozen=True)
class Record:
    """What a stage computed. Equal settings and data give equal bytes: nothing of the machine is in it."""

    stage: Stage
    key: str  # `<comparison>/<name>`; of `params.yaml` `<arm>/<seed>`
    arm: str  # its arm
    identity: str  # fingerprint of settings, data and `NUMERICS`: what tells one run from another
    params: dict[str, Any]  # flat, the same names in every record
    data: dict[str, Any]  # name, sha256, train, heldout, shape
    summary: dict[str, int | float]  # final values
    history: list[dict[str, Any]]  # one row a measurement

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def seed(self) -> int:
        """The one of its trial.

        Raises:
            MaskDMError: it has none.
        """
        seed = self.params.get("seed")
        if not isinstance(seed, int) or seed < 0:
            raise MaskDMError(f"record {self.stage}: {self.key}: params.seed={short(seed)}; allowed: a whole number")
        return seed

    def value(self, name: str) -> float:
        """A number of its summary.

        Raises:
            MaskDMError: it has none of this name.
        """
        if name not in self.summary:
            raise MaskDMError(f"record {self.stage}: {self.key}: summary.{name} is missing")
        return float(self.summary[name])


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
        commit = f"; commit `{str(self.git['commit'])[:7]}`" if self.git.get("commit") else ""
        return f"{name}{shared}{commit}; spread {percent(self.spread)}"


@dataclass(frozen=True)
class Folded:
    """A line of a comparison's file."""

    record: Record
    machine: Machine | None

    __pydantic_config__ = ConfigDict(extra="forbid")


R = TypeVar("R", Record, Machine, StepTimes, Folded)


def record_path(root: Path, stage: str, key: str) -> Path:
    """`records/<stage>/<key>.json` below `root`: of a stage, or of a trial whose comparison is not complete."""
    return root / "records" / stage / f"{key}.json"


def write_record(root: Path, record: Record, machine: Machine) -> None:
    """Write both files of a stage, each all or nothing.

    Raises:
        MaskDMError: a value is not finite, or the disk does not take the file.
    """
    path = record_path(root, record.stage, record.key)
    content = _to_json(path, record)
    machine = replace(machine, record_sha256=hashlib.sha256(content).hexdigest())
    timing = _to_json(_machine_path(path), machine)
    write_atomically(_machine_path(path), lambda file: file.write(timing))
    write_atomically(path, lambda file: file.write(content))  # last: who finds it takes the trial for done


def write_record_at(path: Path, record: Record) -> None:
    """Write a record alone to any place, all or nothing.

    Raises:
        MaskDMError: a value is not finite, or the disk does not take the file.
    """
    content = _to_json(path, record)
    write_atomically(path, lambda file: file.write(content))


def read_record_at(path: Path) -> Record:
    """What `write_record_at` wrote.

    Raises:
        MaskDMError: there is no such file, or it is not a record.
    """
    if not path.is_file():
        raise MaskDMError(f"{path}: no such file; allowed: the record of a run of `maskdm train`")
    return _read(path, Record)


def read_records(root: Path, stages: tuple[Stage, ...] = get_args(Stage)) -> list[tuple[Record, Machine | None]]:
    """All records of some stages below `root`, in the order of the stages, then of the keys.

    The second part is None where the file is missing, or belongs to another version of the record (DVC's run
    cache restores a record, but not the time it once took).

    Raises:
        MaskDMError: a file is not valid JSON, or not a record.
    """
    found: list[tuple[Record, Machine | None]] = []
    for stage in stages:
        folder = root / "records" / stage
        # A trial's own files are newer than its line: it has been done again, or was not folded in yet.
        pairs = {pair[0].key: pair for path in sorted(folder.glob("*.jsonl")) for pair in _read_folded(path)}
        paths = [path for path in sorted(folder.rglob("*.json")) if not path.match("*.machine.json")]
        pairs |= {pair[0].key: pair for pair in map(_read_pair, paths)}
        found += [pairs[key] for key in sorted(pairs)]
    return found


def read_arms(root: Path) -> dict[str, dict[int, Record]]:
    """`<comparison>/<arm>` -> seed -> record. Of searches the runs that confirm, called `search/<arm>`.

    Raises:
        MaskDMError: a file is damaged.
    """
    found: dict[str, dict[int, Record]] = {}
    for record, _ in read_records(root):
        folder = record.key.rpartition("/")[0]
        if record.stage == "tuning" or folder == "trials":  # they differ in more than the seed
            continue
        comparison = folder if record.stage == "study" else record.stage
        found.setdefault(f"{comparison}/{record.arm}", {})[record.seed] = record
    return found


def read_record(root: Path, stage: Stage, key: str) -> tuple[Record, Machine | None] | None:
    """One record, as `read_records` has it; None if there is none.

    Raises:
        MaskDMError: the file is not valid JSON, or not a record.
    """
    path = record_path(root, stage, key)
    if path.is_file():
        return _read_pair(path)
    folded = _folded_path(root, stage, str(Path(key).parent))
    return next((pair for pair in _read_folded(folded) if pair[0].key == key), None) if folded.is_file() else None


def fold_records(root: Path, stage: Stage, folder: str, keep: Collection[str]) -> None:
    """Put the trials of a comparison into one file, `records/<stage>/<folder>.jsonl`: a line a trial, in order of keys.

    A line holds the record and its machine part. A kill leaves the files of the trials, or both.

    Args:
        root: the project.
        stage: of the records.
        folder: that their keys begin with.
        keep: the keys to keep; others are of trials that the comparison had once.

    Raises:
        MaskDMError: a record is damaged, or the disk does not take the file.
    """
    pairs = [(r, m) for r, m in read_records(root, (stage,)) if Path(r.key).parent == Path(folder) and r.key in keep]
    lines = [{"record": asdict(record), "machine": machine and asdict(machine)} for record, machine in pairs]
    text = "".join(json.dumps(line, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n" for line in lines)
    write_text(_folded_path(root, stage, folder), text)
    shutil.rmtree(root / "records" / stage / folder, ignore_errors=True)


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
    times = _read(path, StepTimes)
    for key, kind in {"cpu": str, "device": str, "cores": int, "processes": int}.items():
        if not isinstance(value := times.hardware.get(key), kind):
            raise MaskDMError(f"{path}: hardware.{key}={short(value)}; the stage `step_time` writes it")
    return times


def _folded_path(root: Path, stage: str, folder: str) -> Path:
    return root / "records" / stage / f"{folder}.jsonl"


def _read_folded(path: Path) -> list[tuple[Record, Machine | None]]:
    """The lines of a comparison's file, each of a trial of its own: two comparisons of one name would mix unseen."""
    pairs: dict[str, tuple[Record, Machine | None]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}: line {number}"
        pair = _parse(where, line, Folded)
        stage, key = pair.record.stage, pair.record.key
        if (stage, str(Path(key).parent)) != (path.parent.name, path.stem):
            allowed = f"{path.parent.name}: {path.stem}/..."
            raise MaskDMError(f"{where}: a record of {stage}: {key}; allowed: of {allowed}; {LINE_REMEDY}")
        due = pair.machine and pair.machine.record_sha256
        if due and hashlib.sha256(_to_json(path, json.loads(line)["record"])).hexdigest() != due:
            raise MaskDMError(f"{where}: damaged: {key} is not what was recorded; {LINE_REMEDY}")
        if key in pairs:
            raise MaskDMError(f"{where}: {key} is there twice; allowed: once; {LINE_REMEDY}")
        pairs[key] = (pair.record, pair.machine)
    return list(pairs.values())


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


def _to_json(path: Path, content: Record | Machine | StepTimes | dict[str, Any]) -> bytes:
    try:
        parts = content if isinstance(content, dict) else asdict(content)
        text = json.dumps(parts, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except ValueError:
        raise MaskDMError(f"{path}: a value is NaN or infinite; allowed: finite numbers") from None
    return f"{text}\n".encode()


def _read(path: Path, kind: type[R]) -> R:
    return _parse(str(path), path.read_bytes(), kind)


def _parse(where: str, content: bytes, kind: type[R]) -> R:
    try:
        found = TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise MaskDMError(
            f"{where}: not a valid record: {key + ': ' if key else ''}{problem['msg']}; restore it with git, or "
            "delete it, and what it records is done again"
        ) from None
    if isinstance(found, Record | Folded):
        _require_numbers(where, found if isinstance(found, Record) else found.record)
    return found


def _require_numbers(where: str, record: Record) -> None:
    """Refuse what no stage writes, and what statistics would stumble over."""
    for row in (record.summary, *record.history):
        for name, value in row.items():
            number = isinstance(value, int | float) and abs(value) <= LARGEST and (value > 0 or name not in POSITIVE)
            if not number and (name in POSITIVE or not isinstance(value, str | None)):
                raise MaskDMError(f"{where}: not a valid record: {name}={short(value)}; {LINE_REMEDY}")


def distance_metric(names: Iterable[Any]) -> str:
    """The Fréchet distance among the names in a row, or of a table's columns: `fid`, or `fd_<extractor>`."""
    return next(str(key) for key in names if key == "fid" or str(key).startswith("fd_"))


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


def _cpu_name() -> str:
    """The CPU's model; on Linux `platform` knows only the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
