"""A full disk, a read-only folder, Ctrl-C and a reader that has gone: every command, and the stages of the pipeline.

The faults are the system's own where that is possible: a limit on the size of files, permissions that bind root as
well, a closed pipe, and the device that is always full.
"""

import ctypes
import os
import re
import resource
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maskdm.engine.project import Project
from maskdm.engine.single import RECORD
from maskdm.engine.trial import trial_identity
from maskdm.runtime.processes import ALONE
from maskdm.tracking.records import read_record_at, write_record
from tests.cli.conftest import Run
from tests.datasets.test_survey import pictures
from tests.engine.test_import_weights import checkpoint
from tests.engine.test_model import MACHINE
from tests.networks.test_authors import HEADS, their_weights
from tests.raw_data import place

Fault = Callable[[Path, pytest.MonkeyPatch], AbstractContextManager[None]]

# Every command that writes: what it would write, below the project.
WRITERS = {
    "init ../pictures": "profiles/pictures.yaml",
    "profile smoke": "params.yaml",
    "train scratch --seed 5": "runs/train/scratch/5",
    "sample scratch --count 2 --animation webp": "samples",
    "interpolate scratch --count 2": "samples",
    "export scratch": "exports",
    f"import-weights ../authors.pt imported --num-heads {HEADS}": "imported",
    "sync": "mlflow.db",
    "reproduce scratch --seed 5": "runs/train/scratch/5",
}
# Every command that prints; `search` and `ui` become other programs.
PRINTERS = [
    *("plan", "plan --json", "advise", "doctor", "open", "evaluate scratch --count 8", "profile smoke --json"),
    *(
        "compare runs/train/scratch/0 runs/train/scratch/0",
        "sample scratch --count 2",
        "train scratch --json",
        "--help",
    ),
    *("init --help", "sync"),
]
# From which a training or `prepare` goes on, and where a training is tracked.
WORK = {"work", ".prepared.partial", "mlflow.db", "mlartifacts", ".dvc"}


@pytest.fixture
def ready(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which every command has what it needs, on a machine of a known speed."""
    (project / "profiles" / "toy.yaml").write_bytes((project / "params.yaml").read_bytes())
    (project / "reports").mkdir()
    (project / "reports" / "index.html").write_text("<html>")
    place(project.parent / "pictures", pictures(120))
    torch.save(checkpoint(their_weights(), None), project.parent / "authors.pt")
    for name in ("cost", "dry_run"):
        monkeypatch.setattr(f"maskdm.engine.{name}.measure_rate", lambda *_: 1e11)
    monkeypatch.setattr("maskdm.engine.dry_run.BURST_SECONDS", 0.01)
    return project


def publish_scratch(project: Path) -> None:
    """Let there be the records of two seeds, as `reproduce` needs them; one is the other with a loss of its own."""
    found, opened = read_record_at(project / "runs" / "train" / "scratch" / "0" / RECORD), Project.open(ALONE)
    for seed in opened.params.seeds:
        record = replace(
            found,
            stage="default",
            key=f"scratch/{seed}",
            identity=trial_identity(opened.trial("scratch", seed), judged=True),
            params=found.params | {"seed": seed},
            summary=found.summary | {"heldout_loss": found.summary["heldout_loss"] + 0.01 * seed},
        )
        write_record(project, record, replace(MACHINE, seconds=[1.0] * len(found.history)))


# --- the faults -------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(project: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file may become larger than a few bytes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


class Header(ctypes.Structure):
    """Of Linux's capabilities(7)."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class Capabilities(ctypes.Structure):
    """Two words of each set."""

    _fields_ = tuple(
        (f"{kind}{word}", ctypes.c_uint32) for word in (0, 1) for kind in ("effective", "permitted", "own")
    )


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Root may read and write anything: as long as it has the capabilities 1 and 2."""
    libc, header, found = ctypes.CDLL(None, use_errno=True), Header(0x20080522, 0), Capabilities()
    assert libc.capget(ctypes.byref(header), ctypes.byref(found)) == 0
    before = found.effective0
    found.effective0 = before & ~0b110
    assert libc.capset(ctypes.byref(header), ctypes.byref(found)) == 0
    try:
        yield
    finally:
        found.effective0 = before
        assert libc.capset(ctypes.byref(header), ctypes.byref(found)) == 0


@contextmanager
def read_only(project: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The whole project may be read alone."""
    paths = [path for path in (project, *project.rglob("*")) if not path.is_symlink()]
    modes = {path: path.stat().st_mode for path in paths}
    for path in reversed(paths):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with bound_by_permissions():
            yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@contextmanager
def interrupted(project: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C at the worst moment: all is written, and nothing is in its place."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with patch.context() as patched:
        patched.setattr("os.replace", stop)
        patched.setattr("os.rename", stop)
        yield


FAULTS: dict[Fault, int] = {full_disk: 2, read_only: 2, interrupted: 130}  # and the status


def contents(project: Path) -> dict[Path, bytes]:
    found = {path.relative_to(project): path for path in project.rglob("*") if path.is_file()}
    caches = {".lock", ".pyc"}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if name.suffix not in caches and not WORK.intersection(name.parts)
    }


def lines(said: str) -> list[str]:
    """What is no progress bar."""
    shown = said.replace("\r", "\n").splitlines()
    return [line for line in shown if line.strip() and not re.search(r"%\||\[\d+:\d+, .*/s\]", line)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("line", WRITERS, ids=lambda line: line.split()[0])
def test_what_stops_a_command_that_writes_is_one_line_and_leaves_nothing_half_written(
    line: str,
    fault: Fault,
    ready: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if line == "sync":
        (ready / "mlflow.db").unlink()
    if line.startswith("reproduce"):
        publish_scratch(ready)
    before = contents(ready)
    with fault(ready, monkeypatch):
        status = run(*line.split())
    said = capsys.readouterr()
    assert status == FAULTS[fault], said
    *others, error = lines(said.err)
    assert all(other.startswith("warning: tracking failed (") for other in others), "it stops no training"
    assert error.startswith("interrupted: " if fault is interrupted else "error: ")
    assert contents(ready) == before
    assert line.startswith(("profile", "sync")) or not (ready / WRITERS[line]).exists()


@contextmanager
def output_to(descriptor: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    with open(descriptor, "w") as output, patch.context() as patched:
        patched.setattr(sys, "stdout", output)
        yield


@pytest.mark.parametrize("line", PRINTERS)
def test_a_reader_that_has_gone_and_a_full_disk_behind_the_output_are_one_line(
    line: str, ready: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for descriptor, status, says in (
        (writer, 141, "error: the reader of the output has gone; not all was written"),
        (os.open("/dev/full", os.O_WRONLY), 2, "error: No space left on device"),
    ):
        shutil.rmtree(ready / "samples", ignore_errors=True)
        with output_to(descriptor, monkeypatch):
            found = run(*line.split())
        [error] = lines(capsys.readouterr().err)
        assert (found, error) == (status, says)


# --- from any folder of the project -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["profile smoke", "plan --brief", "advise", "open", "compare runs/train/scratch/0 scratch"]
)
def test_commands_work_in_any_folder_of_the_project(
    line: str, ready: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ready / "data" / "prepared")
    own = line.replace("runs/", "../../runs/")
    assert run(*own.split()) == (2 if line.endswith(" scratch") else 0)  # of `scratch` nothing is in records/


@pytest.mark.parametrize(("command", "made"), [("sample", "samples/scratch-seed0"), ("export", "exports/scratch")])
def test_what_is_made_without_a_place_is_made_in_the_working_folder(
    command: str, made: str, ready: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ready / "profiles")
    assert run(command, "scratch") == 0
    assert (ready / "profiles" / made).is_dir()


# --- the stages of the pipeline ---------------------------------------------------------------------------------

STAGES = {
    **dict.fromkeys(("prepare", "masks", "reference"), ""),
    **dict.fromkeys(("report", "page", "search_report", "step_time", "search"), ""),
    **dict.fromkeys(("pretrain", "finetune", "evaluate"), "scratch"),
    **{"study": "methods", "tune": "rates", "throughput": "", "advice": "", "swiss_roll": ""},
}


def run_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [f"pipeline.{name}", *STAGES[name].split()])
    try:
        runpy.run_module(f"pipeline.{name}", run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def torn(path: Path) -> None:
    path.write_text("arms: {scratch: [")


@pytest.mark.parametrize("spoil", [Path.unlink, torn], ids=["missing", "torn"])
@pytest.mark.parametrize("name", STAGES)
def test_settings_that_are_missing_or_torn_stop_a_stage_with_one_line(
    name: str,
    spoil: Callable[[Path], None],
    ready: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = "study/params.yaml" if name in ("study", "tune", "throughput", "swiss_roll") else "params.yaml"
    spoil(ready / file)
    before = contents(ready)
    assert run_stage(name, monkeypatch) == 2
    [error] = lines(capsys.readouterr().err)
    assert error.startswith(f"error: {file}: ")
    assert contents(ready) == before


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("name", ["prepare", "masks", "reference"])
def test_what_stops_a_stage_is_one_line_and_leaves_what_was_there(
    name: str,
    fault: Fault,
    ready: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = contents(ready)
    with fault(ready, monkeypatch):
        status = run_stage(name, monkeypatch)
    [error] = lines(capsys.readouterr().err)
    assert status == FAULTS[fault], error
    assert contents(ready) == before
