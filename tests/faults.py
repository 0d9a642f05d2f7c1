"""A hundred faults: does the same command go on to the same results, or one line say what to delete?

python -m tests.faults [--count 100] [--seed 0] [--faults PATTERN] [--targets PATTERN] [--folder build/faults]

A toy project is run once, stage after stage, and its state before each is kept. A case is a stage, a fault and a
moment, drawn from the seed and the case's number: the stage runs on a copy of its state and meets the fault just before
one of the changes that it makes to a file; then the same command runs again. In one case of six the command is the
whole `dvc repro`. What is compared with the undisturbed run: all files, records and tables but for times, and all that
MLflow holds. It goes on where it was stopped.

Stages, and DVC itself, run as forks of this process, which has loaded the libraries: a start takes no time.
"""

import argparse
import errno
import gc
import importlib
import json
import mmap
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from runpy import run_module
from types import SimpleNamespace
from typing import Any

import dvc.cli
import dvc.repo.reproduce
import dvc.stage.run
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

import maskdm.engine.launch
import maskdm.engine.searching
import maskdm.engine.stages
import maskdm.engine.train
import maskdm.engine.tuning
import maskdm.engine.workers
import maskdm.reporting.index
from maskdm.training.loop import PhaseTrainer
from tests.conftest import PARAMS
from tests.kills import differences, facts, wait_for_workers, working_folders
from tests.pipeline.test_pipeline import dvc_stages
from tests.pipeline.test_study import DENSE, FIRST, write_blocks
from tests.pipeline.test_tune import ARMS
from tests.swiss_roll.test_swiss_roll import TOY as SWISS_ROLL
from tests.workspace import PROJECT, make_workspace, write_params

DEFAULT = (  # as `dvc repro` takes them, in the order in which they are run once
    *("prepare", "pretrain@staged", "finetune@staged", "reference", "evaluate@staged", "pretrain@scratch"),
    *("finetune@scratch", "evaluate@scratch", "masks", "step_time", "report", "search", "search_report", "page"),
)
OF_STUDY = (  # the same
    *("part@masks", "tuning@both", "set@nines", "set_reference@nines", "set_part@nines", "set_tuning@apart"),
    *("step_time", "throughput", "advice", "swiss_roll", "large_search", "large_search_report", "study_report"),
)
TARGETS = (*DEFAULT, *(f"study/dvc.yaml:{name}" for name in OF_STUDY))
WHOLE = "dvc.yaml"  # `dvc repro` itself: all of `DEFAULT`
WHOLE_SHARE = 1 / 6  # of the cases
SHORT = FIRST | {"budget": {"train_flops": 2e9, "snapshots": [1.0]}}
THREE_MASKS: dict[str, Any] = {
    "scratch": [DENSE],
    **{
        name: [{"mask": mask, "share": 0.25, "batch_size": 16}, DENSE]
        for name, mask in {
            "patch75": {"strategy": "patch", "ratio": 0.75},
            "block75": {"strategy": "block", "ratio": 0.75, "block": 2},
            "crop2": {"strategy": "crop", "crop": 2},
        }.items()
    },
}
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "ctrl-c": signal.SIGINT}
FAULTS = (*SIGNALS, "full disk", "torn file", "clock", "worker killed", "two at once")
JUMPS = (-400 * 86400.0, -3600.0, 3600.0, 400 * 86400.0)  # seconds
TOO_LATE = "after the end"  # a run on a faster machine saves its state less often: another moment is drawn
UNTRACKED = "warning: tracking failed"  # then `maskdm sync` completes what MLflow has
UNREADABLE = "the results cannot be read"
HAVE_WORKERS = f"pretrain@staged|finetune|evaluate|search$|part|tuning|^{WHOLE}$"
ENDS_WITHIN = 900.0  # seconds, on a machine that is busy
CONTEXT = multiprocessing.get_context("fork")


class UnreadableError(RuntimeError):
    """Reading the results fails."""


# --- commands as forks ----------------------------------------------------------------------------------------


class Moment:
    """Of a run: its `index`th change of a file, by whatever process of it, waits there until the fault is done.

    Shared by all processes of the run: how many changes there were, and by how much the clock has jumped.

    Args:
        folder: of the project; changes elsewhere do not count.
        index: None: nothing waits, and every change is noted.
        kinds: the processes whose changes count: d(vc), s(tage), w(orker).
        log: file of what was noted.
    """

    def __init__(self, folder: Path, index: int | None, kinds: str, log: Path) -> None:
        self.folder, self.index, self.kinds = str(folder.resolve()), index, kinds
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        log.write_bytes(b"")
        self._log = os.open(log, os.O_RDWR | os.O_APPEND)
        self._wait, self._go = os.pipe()
        self._kind, self._main = "", 0

    @property
    def count(self) -> int:
        """Changes so far."""
        return int(memoryview(self._memory).cast("q")[0])

    @property
    def offset(self) -> float:
        """Seconds that the clock is ahead."""
        return float(memoryview(self._memory).cast("d")[1])

    @offset.setter
    def offset(self, seconds: float) -> None:
        memoryview(self._memory).cast("d")[1] = seconds

    def watch(self, kind: str) -> None:
        """Let this process and its children take part: `d` is DVC, `s` a stage, whose children are workers."""
        first, self._kind, self._main = not self._kind, kind, os.getpid()
        if first:
            sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        kind = self._kind if os.getpid() == self._main else "w"
        place = changed_file(event, arguments)
        if place is None or kind not in self.kinds or not os.path.abspath(place).startswith(self.folder):
            return
        if place.endswith(".lock") and not place.endswith("dvc.lock"):  # who waits for one opens it again and again
            return
        count = memoryview(self._memory).cast("q")
        count[0] += 1
        number = count[0]
        if self.index is None or number == self.index:
            os.write(self._log, f"{kind} {event} {os.path.relpath(os.path.abspath(place), self.folder)}\n".encode())
        if number == self.index:
            os.read(self._wait, 1)

    def reached(self, process: "Fork") -> str | None:
        """Wait for it; what was about to be changed, or None: the run ended before."""
        while not (said := self.changes()):
            if not process.alive:
                return None
            time.sleep(0.002)
        return said[0]

    def go_on(self) -> None:
        """Let what waits go on."""
        os.write(self._go, bytes(8))

    def changes(self) -> list[str]:
        """What was noted so far."""
        return os.pread(self._log, 1 << 24, 0).decode().splitlines()

    def close(self) -> None:
        """The end of the run."""
        for descriptor in (self._log, self._wait, self._go):
            os.close(descriptor)


def changed_file(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The file or folder that an audit event of Python's is about to change."""
    if event == "open":
        path, mode, flags = arguments
        writes = set(mode) & set("wax+") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)
        return os.fsdecode(path) if writes and isinstance(path, str | bytes | os.PathLike) else None
    if event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "sqlite3.connect"}:
        path = arguments[0]
        return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else None
    return None


class Fork:
    """A function in a copy of this process, in a process group of its own; what it prints goes to a file."""

    def __init__(self, function: Callable[[], object], folder: Path, output: Path) -> None:
        self.output = output
        self._process = CONTEXT.Process(target=self._run, args=(function, folder))
        sys.stdout.flush()
        gc.collect()  # what is closed in a copy would let go of the locks of others
        self._process.start()
        self.pid = int(self._process.pid or 0)

    def _run(self, function: Callable[[], object], folder: Path) -> None:
        os.setsid()
        with self.output.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background commands ignore it
        with noted_modules():
            function()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def wait(self) -> int:
        """The exit status.

        Raises:
            RuntimeError: it does not end.
        """
        self._process.join(ENDS_WITHIN)
        if self._process.exitcode is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise RuntimeError("it hangs")
        load_noted_modules()
        return self._process.exitcode


NOTED = Path(tempfile.mkdtemp(prefix="maskdm-faults-")) / "modules"
NOT_TO_LOAD = re.compile(r"__m|pipeline|tests|multiprocessing|readline")


@contextmanager
def noted_modules() -> Iterator[None]:
    """Note what is imported in the `with` block: the next forks shall have it."""
    before = set(sys.modules)
    try:
        yield
    finally:
        with NOTED.open("a") as file:
            file.write("".join(f"{name}\n" for name in set(sys.modules) - before if not NOT_TO_LOAD.match(name)))


def load_noted_modules() -> None:
    """Import what was noted."""
    names = NOTED.read_text().split() if NOTED.exists() else []
    NOTED.unlink(missing_ok=True)
    for name in sorted(set(names) - set(sys.modules)):
        with suppress(Exception):
            importlib.import_module(name)


class ForkedStage:
    """In place of the `Popen` with which DVC starts a stage."""

    def __init__(self, command: Sequence[str], env: dict[str, str], **_: Any) -> None:
        sys.stdout.flush()
        self.returncode = 0
        self._process = CONTEXT.Process(target=run_stage, args=(shlex.split(command[-1])[2:], env))
        self._process.start()

    def communicate(self) -> None:
        self._process.join()
        self.returncode = self._process.exitcode or 0


MOMENT: Moment | None = None  # of the run that this process belongs to


def run_stage(command: Sequence[str], env: dict[str, str] | None = None) -> None:
    """`python -m <command>`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(env or {})
    if MOMENT:
        MOMENT.watch("s")
    sys.argv = list(command)
    with noted_modules():
        run_module(command[0], run_name="__main__")


def run_dvc(target: str) -> None:
    """`dvc repro <target>`; of the whole, as users do it: without a target."""
    if MOMENT:
        MOMENT.watch("d")
    sys.exit(dvc.cli.main(["repro", *([] if target == WHOLE else [target])]))


def command_of(target: str) -> list[str]:
    """The module and the arguments of a stage."""
    file, _, stage = target.rpartition(":")
    name, _, key = stage.partition("@")
    command = dvc_stages()[f"{file or WHOLE}:{name}"]["cmd"]
    return shlex.split(command.replace("${key}", key).removeprefix("python -m "))


def prepare_forks() -> None:
    """Let stages and their workers be forks of what has loaded the libraries, with a checkpoint twice a second."""
    changed: list[tuple[Any, str, Any]] = [
        (maskdm.engine.workers, "get_context", forks),
        (maskdm.engine.searching, "get_context", forks),
        (maskdm.engine.workers, "load_libraries", lambda: None),
        (maskdm.engine.launch, "load_libraries", lambda: None),
        (maskdm.engine.train, "PhaseTrainer", partial(PhaseTrainer, checkpoint_seconds=0.5)),
    ]
    for module, name, value in changed:
        setattr(module, name, value)
    dvc.stage.run.subprocess = SimpleNamespace(Popen=ForkedStage)  # type: ignore[attr-defined]
    # As where a new program is started: what a stage does at SIGTERM is not what its workers do.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    patch_clock()


def forks(_: str) -> Any:
    """Multiprocessing's context, whatever is asked for."""
    gc.collect()  # as in `Fork`
    return CONTEXT


def patch_clock() -> None:
    """Let every module's `time.time` and `datetime` follow the clock of the run."""
    true_time = time.time

    def shifted_time() -> float:
        return true_time() + (MOMENT.offset if MOMENT else 0.0)

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=MOMENT.offset if MOMENT else 0.0)

    time.time = shifted_time
    for name, module in list(sys.modules.items()):
        if not name.startswith(("maskdm", "mlflow", "optuna", "dvc", "filelock")):
            continue
        for key, value in list(vars(module).items()):
            if value is datetime:
                setattr(module, key, Shifted)
            elif value is true_time:
                setattr(module, key, shifted_time)


# --- the project ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Before:
    """What is known of a stage from the undisturbed run."""

    state: Path  # copy of the project before it
    state_after: Path
    after: dict[str, Any]  # of `all_facts`, when it had run
    changes: list[str]  # of files, in order


class Lab:
    """The project, the states of its undisturbed run, and how commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.project = folder, folder / "project"  # the same place for all: MLflow notes absolute paths
        self.output, self.log = folder / "output", folder / "changes"

    def undisturbed(self, target: str) -> Before:
        """Run a stage behind those before it, or read what an earlier run of this harness has left of that."""
        state, after = self.state(target), self.state(target, 1)
        known = after.with_suffix(".json")
        if not known.is_file():
            shutil.rmtree(after, ignore_errors=True)
            if not state.is_dir():
                self.make(state)
            began = time.monotonic()
            with copied(state, self.project, is_small=False):
                moment = Moment(self.project, None, "dsw", self.log)
                if self.start(partial(run_dvc, target), moment).wait():
                    raise RuntimeError(f"dvc repro {target} failed:\n{self.said()}")
                found = {"after": self.facts(), "changes": moment.changes()}
                moment.close()
                shutil.copytree(self.project, after, symlinks=True)
            known.write_text(json.dumps(found))
            count = len(found["changes"])
            print(f"undisturbed {target}: {time.monotonic() - began:.0f} s, {count} changes of files", flush=True)
        return Before(state, after, **json.loads(known.read_text()))

    def make(self, state: Path) -> None:
        """The project, before anything has run."""
        fresh = state.with_name("fresh")
        shutil.rmtree(fresh, ignore_errors=True)
        make_workspace(fresh, "smoke")
        write_params(fresh)
        tuning = {"seed": 9, "train_flops": 4e9, "trials": 3, "arms": ARMS, "recipe": "adamw"}
        blocks = {
            "parts": {"masks": SHORT | {"arms": THREE_MASKS}},
            "tunings": {"both": tuning},
            "sets": {"nines": {"data": PARAMS["data"] | {"holdout": 40, "classes": ["9"]}, "reference": 100}},
            "set_parts": {"nines": SHORT | {"seeds": [1], "set": "nines"}},
            "set_tunings": {"apart": tuning | {"trials": 2, "set": "nines"}},
            "search": PARAMS["search"] | {"trials": 2, "confirm_seeds": [103]},
            "swiss_roll": SWISS_ROLL,
        }
        write_blocks(fresh, blocks)
        fresh.rename(state)

    def state(self, target: str, behind: int = 0) -> Path:
        """Where the copy of the project before a stage is, or after it."""
        if target == WHOLE:
            return self.folder / "states" / ("whole" if behind else "00")
        return self.folder / "states" / f"{TARGETS.index(target) + behind:02d}"

    def places_of(self, target: str) -> list[str]:
        """What the stage and those before it read and write, by DVC's lock file; where it works, and what tracks it."""
        lock: dict[str, Any] = {}
        for file in ("dvc.lock", "study/dvc.lock"):
            path = self.state(target, 1) / file
            stages = YAML(typ="safe").load(path)["stages"] if path.is_file() else {}
            prefix = "" if file == "dvc.lock" else "study/dvc.yaml:"
            lock |= {prefix + name: stage for name, stage in stages.items()}
        makers = [(out["path"], name) for name, stage in lock.items() for out in stage["outs"]]
        found, waiting = set[str](), list(lock) if target == WHOLE else [target]
        while waiting:
            stage = lock[waiting.pop()]
            read = [dep["path"] for dep in stage.get("deps", []) if not dep["path"].startswith(("maskdm", "pipeline"))]
            found |= {*read, *(out["path"] for out in stage["outs"])}
            waiting += [name for path in read for out, name in makers if out == path or out.startswith(f"{path}/")]
        return [*sorted(found), "work", "mlflow.db", "dvc.lock"]

    def start(self, command: Callable[[], object], moment: Moment | None = None) -> Fork:
        """Run a command in the project, from whose beginning `moment` counts."""
        global MOMENT
        MOMENT = moment
        self.output.write_bytes(b"")
        if (self.project / ".dvc" / "tmp" / "rwlock").exists() or is_torn(self.project):  # as `make repro` does
            subprocess.run(["make", "--silent", "-f", PROJECT / "Makefile", "unlock"], cwd=self.project, check=True)
        try:
            return Fork(command, self.project, self.output)
        finally:
            MOMENT = None

    def run(self, command: Callable[[], object]) -> tuple[int, str]:
        """The exit status of a command, and what it said."""
        return self.start(command).wait(), self.said()

    def said(self) -> str:
        """By the last command."""
        return self.output.read_text(errors="replace")

    def different(self, expected: dict[str, Any]) -> list[str]:
        """What is not as in the undisturbed run."""
        try:
            return list(differences(self.facts(), expected))
        except UnreadableError:
            return [UNREADABLE]

    def facts(self) -> dict[str, Any]:
        """All that must be as in the undisturbed run."""
        found = self.folder / "facts.json"
        if Fork(partial(write_facts, found), self.project, self.output).wait():
            raise UnreadableError(self.said())
        content: dict[str, Any] = json.loads(found.read_text())
        return content


def is_torn(project: Path) -> bool:
    """Whether DVC would stop at its lock file."""
    with suppress(FileNotFoundError):
        try:
            COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(project / "dvc.lock"))
        except (YAMLError, Invalid):
            return True
    return False


def write_facts(path: Path) -> None:
    """`all_facts` of the folder that this process is in."""
    content = json.dumps(all_facts(Path()))
    path.write_text(content)


def all_facts(folder: Path) -> dict[str, Any]:
    """Results, what MLflow has, and which other files there are."""
    found = facts(folder)
    for top in ("data", "runs", "records", "reports", "work"):
        for path in (folder / top).rglob("*"):
            if path.is_file() and path.suffix != ".lock" and str(path) not in found:
                found[str(path)] = "there"
    return found


# --- faults ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What is done, by its number."""

    number: int
    target: str
    fault: str
    through: str  # "dvc": `dvc repro`; "stage": the command of the stage
    draw: random.Random

    @property
    def command(self) -> Callable[[], object]:
        return partial(run_dvc, self.target) if self.through == "dvc" else partial(run_stage, command_of(self.target))

    @property
    def as_json(self) -> dict[str, Any]:
        return {"number": self.number, "fault": self.fault, "through": self.through, "target": self.target}

    @property
    def name(self) -> str:
        return f"{self.number:3d} {self.fault:<13} {self.through:<5} {self.target:<26}"


def draw_case(number: int, seed: int) -> Case:
    """The case of a number: the faults in turn, of stages that have something to be hit."""
    draw, fault = random.Random(f"{seed}/{number}"), FAULTS[number % len(FAULTS)]
    # Files are torn where users work: DVC is the one that sees whether what stages have handed on is what it was.
    through = "dvc" if fault == "torn file" else draw.choice(("dvc", "stage"))
    fitting = [target for target in TARGETS if fault != "worker killed" or re.search(HAVE_WORKERS, target)]
    target = draw.choice(fitting)
    if draw.random() < WHOLE_SHARE:
        target, through = WHOLE, "dvc"
    return Case(number, target, fault, through, draw)


def those_before(target: str) -> Sequence[str]:
    """The stages that have run before a stage."""
    return () if target == WHOLE else TARGETS[: TARGETS.index(target)]


def run_case(lab: Lab, case: Case) -> tuple[str, str]:
    """Where the fault was, and how it ended: `equal`, or what is wrong."""
    before = lab.undisturbed(case.target)
    kinds = "w" if case.fault == "worker killed" else "dsw" if case.through == "dvc" else "sw"
    count = sum(change[0] in kinds for change in before.changes)
    for _ in range(3):
        moment = Moment(lab.project, case.draw.randint(1, max(1, count)), kinds, lab.log)
        with copied(before.state, lab.project, is_small=case.fault == "full disk"):
            try:
                where, wrong = disturb(lab, case, moment)
                ended = wrong or recover(lab, case, before.after)
            except RuntimeError as error:
                return "", f"FAILED: {error}"
            finally:
                count = moment.count
                moment.close()
        if not where.startswith(TOO_LATE):
            break
    return where, f"too late, {ended}" if where.startswith(TOO_LATE) and ended == "equal" else ended


def disturb(lab: Lab, case: Case, moment: Moment) -> tuple[str, str | None]:
    """Run the command with the fault; where it was, and what is wrong already."""
    process = lab.start(case.command, moment)
    where = moment.reached(process)
    if where is None:
        process.wait()
        where = TOO_LATE
    note = ""
    filler = lab.project / "filler"
    if case.fault in SIGNALS:
        note = interrupt(process, SIGNALS[case.fault], case, moment)
    elif case.fault == "torn file":
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    elif case.fault == "worker killed":
        note = kill_worker(lab.project, process, case)
    elif case.fault == "clock":
        moment.offset = case.draw.choice(JUMPS)
        note = f"by {moment.offset / 3600:+.0f} h"
    elif case.fault == "full disk":
        note = fill(filler, case.draw.choice((0, 1, 4, 16, 64)) * 4096)
    elif case.fault == "two at once":
        moment.go_on()
        other = Fork(case.command, lab.project, lab.folder / "other")
        note = f"the other ended with {other.wait()}"
    moment.go_on()
    status = process.wait()
    wait_for_workers(lab.project, ENDS_WITHIN)
    filler.unlink(missing_ok=True)
    said = lab.said()
    wrong = None
    if "Traceback (most recent call last)" in said:
        wrong = f"FAILED: a traceback: {said[-1500:]}"
    if case.fault in {"clock", "two at once"} and status and "another process" not in said and "lock" not in said:
        wrong = wrong or f"FAILED: status {status}: {said[-500:]}"
    if case.fault == "torn file":
        note = tear(lab.project, lab.places_of(case.target), case.draw)
    return f"{where} {note} (status {status})", wrong


def interrupt(process: Fork, number: signal.Signals, case: Case, moment: Moment) -> str:
    """A signal to the process group, as a terminal or a batch system sends it, or to its first process alone."""
    alone = number != signal.SIGINT and case.draw.random() < 0.3
    if alone and number == signal.SIGKILL:
        moment.go_on()  # the rest goes on
    with suppress(ProcessLookupError):
        (os.kill if alone else os.killpg)(process.pid, number)
    return "alone" if alone else "all"


def kill_worker(project: Path, process: Fork, case: Case) -> str:
    """SIGKILL to one of the workers, which have a session of their own."""
    found = [int(link.parent.name) for link in working_folders() if _is_in(link, project)]
    workers = []
    for pid in found:
        with suppress(ProcessLookupError):
            if pid != process.pid and os.getsid(pid) == pid:
                workers.append(pid)
    if not workers:
        return "nobody at work"
    with suppress(ProcessLookupError):
        os.kill(case.draw.choice(sorted(workers)), signal.SIGKILL)
    return f"one of {len(workers)}"


def _is_in(link: Path, folder: Path) -> bool:
    with suppress(OSError):
        return Path(os.readlink(link)) == folder
    return False


def fill(filler: Path, left: int) -> str:
    """Fill the disk up to `left` bytes. Others write meanwhile: what was free may be so no longer."""
    with filler.open("wb") as file:
        while (size := free_bytes(filler.parent) - left) > 0:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                break
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return f"{left} bytes left"


def free_bytes(folder: Path) -> int:
    """Of the disk that a folder is on."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


PRECIOUS = {  # a kind of file -> where such files are
    "record": ("records/**/*.json*", "runs/**/*.json", "work/**/judged/*.json"),
    "checkpoint": ("work/**/*.pt", "runs/**/state.pt"),
    "database": ("mlflow.db", "work/**/study.db"),
    "weights": ("runs/**/*.safetensors", "work/**/*.safetensors", "runs/**/config.json"),
    "samples": ("runs/**/*.np*", "work/**/*.np*"),
    "data": ("data/**/*.np*", "data/**/*.json"),
    "DVC's": ("dvc.lock", "study/dvc.lock"),
    "report": ("reports/**/*.csv", "reports/**/*.md", "reports/**/*.yaml"),
}


def tear(project: Path, places: Sequence[str], draw: random.Random) -> str:
    """Cut a file short, or change a few of its bits or a whole page, as a power cut or a bad disk does."""
    kinds = {
        kind: files for kind, patterns in PRECIOUS.items() if (files := sorted(set(find(project, patterns, places))))
    }
    if not kinds:
        return "nothing to tear"
    path = draw.choice(kinds[draw.choice(list(kinds))])
    content = bytearray(path.read_bytes())
    how = draw.choice(("cut", "bits", "page"))
    if how == "cut":
        content = content[: draw.randrange(len(content))]
    elif how == "bits":
        for _ in range(3):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    else:
        start = draw.randrange(0, len(content), 4096)
        content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    path.write_bytes(content)
    return f"{path.relative_to(project)}: {how}"


def find(project: Path, patterns: Sequence[str], places: Sequence[str]) -> Iterator[Path]:
    """The files that fit a pattern and are at one of the places, or below."""
    for path in (path for pattern in patterns for path in project.glob(pattern)):
        name = path.relative_to(project).as_posix()
        if path.stat().st_size and any(name == place or name.startswith(f"{place}/") for place in places):
            yield path


@contextmanager
def copied(state: Path, project: Path, is_small: bool) -> Iterator[None]:
    """The project in a state, on a disk of its own if it is to become full. Needs Linux, and root for the disk."""
    if project.is_mount():  # left by a kill
        subprocess.run(["umount", "--lazy", project], check=True)
    shutil.rmtree(project, ignore_errors=True)
    if not is_small:
        shutil.copytree(state, project, symlinks=True)
        yield
        return
    project.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", project], check=True)
    try:
        shutil.copytree(state, project, symlinks=True, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", project], check=True)


# --- what comes of it -----------------------------------------------------------------------------------------


def recover(lab: Lab, case: Case, expected: dict[str, Any]) -> str:
    """The same command again, with what its one line says to do; how it ended."""
    followed, said_before = [], lab.said()
    for _ in range(4):
        status, said = lab.run(case.command)
        if status == 0:
            break
        if "Traceback (most recent call last)" in said:
            return f"FAILED: a traceback: {said[-1500:]}"
        done = follow(lab, said)
        if done is None:
            return f"FAILED: status {status}, and nothing to do: {said[-1500:]}"
        followed.append(done)
    else:
        return f"FAILED: it does not go on: {followed}; {said[-500:]}"
    different, untracked = lab.different(expected), [each for each in (said, said_before) if UNTRACKED in each]
    if different and (untracked or different == [UNREADABLE]):
        steps, said = resync(lab, untracked[0] if untracked else "")
        if not steps:
            return f"FAILED: maskdm sync: {said[-500:]}"
        followed += steps
        different = lab.different(expected)
    if different:
        return f"FAILED: {len(different)} differ after {followed or 'the same command'}: {'; '.join(different[:6])}"
    return f"equal after {', '.join(followed)}" if followed else "equal"


def resync(lab: Lab, said: str) -> tuple[list[str], str]:
    """`maskdm sync`, with what a line of it, or of the command before it, says to delete; what was done, and said."""
    done = [str(follow(lab, said))] if "delete it" in said else []
    status, said = lab.run(run_sync)
    if status and (deleted := follow(lab, said)):  # a stage that tracks nothing does not meet a damaged store
        done.append(deleted)
        status, said = lab.run(run_sync)
    return ([] if status else [*done, "maskdm sync"]), said


def run_sync() -> None:
    """`maskdm sync`."""
    from maskdm.cli.app import main

    sys.argv = ["maskdm", "sync"]
    main()


def follow(lab: Lab, said: str) -> str | None:
    """Do what the line of a command says; what that was."""
    line = next((each for each in reversed(said.splitlines()) if re.match("(error|warning): ", each)), "")
    if found := re.match(r"error: ([^:]+): line (\d+): .*delete the line", line):
        path = lab.project / found[1]
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: int(found[2]) - 1] + lines[int(found[2]) :]))
        return f"deleting line {found[2]} of {found[1]}"
    place = re.match(r"(?:error|warning): (?:tracking (?:failed \(|store ))?(?:sqlite\S*?:///)?([^:]+): ", line)
    path = lab.project / place[1] if place else lab.project
    if found := re.search(r"`dvc repro -f (\S+)`", line):
        status, _ = lab.run(partial(force_dvc, found[1]))
        return f"dvc repro -f {found[1]}" if status == 0 else None
    if found := re.search(r"delete (?!it,)(\S+), and", line):
        path = lab.project / found[1]
    if "delete it" not in line and not found:
        return None
    if not path.exists() or path == lab.project:
        return None
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return f"deleting {path.relative_to(lab.project)}"


def force_dvc(target: str) -> None:
    sys.exit(dvc.cli.main(["repro", "-f", target]))


def main() -> None:
    """Build the undisturbed run, go through the cases, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default="*", help=f"those that fit a pattern, of: {', '.join(FAULTS)}")
    parser.add_argument("--targets", default="*", help="of the stages, those that fit a pattern")
    parser.add_argument("--folder", type=Path, default=Path("build/faults"))
    given = parser.parse_args()
    lab = Lab(given.folder.resolve())
    prepare_forks()
    results = lab.folder / f"cases-{given.seed}.jsonl"
    lab.folder.mkdir(parents=True, exist_ok=True)
    results.touch()
    done = {case["number"]: case for case in map(json.loads, results.read_text().splitlines())}
    cases = [draw_case(number, given.seed) for number in range(given.count)]
    for case in sorted(cases, key=lambda case: (len(those_before(case.target)), case.number)):
        if case.number in done or not (fnmatch(case.fault, given.faults) and fnmatch(case.target, given.targets)):
            continue
        for target in those_before(case.target):
            lab.undisturbed(target)
        began = time.monotonic()
        where, ended = run_case(lab, case)
        print(f"{case.name} {where}: {ended} ({time.monotonic() - began:.0f} s)", flush=True)
        done[case.number] = {**case.as_json, "where": where, "ended": ended}
        with results.open("a") as file:
            file.write(json.dumps(done[case.number]) + "\n")
    for fault in FAULTS:
        ends = Counter(str(each["ended"]).split()[0] for each in done.values() if each["fault"] == fault)
        print(f"{fault}: {dict(ends)}")
    sys.exit(any(each["ended"].startswith("FAILED") for each in done.values()))


if __name__ == "__main__":
    main()
