"""Tasks in processes of their own."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from maskdm.engine import workers
from maskdm.engine.workers import in_a_copy, run_all
from maskdm.runtime.device import choose_device
from maskdm.runtime.errors import MaskDMError
from tests.imports import PROJECT


def where(task: int) -> tuple[int, int, str]:
    return task, os.getpid(), os.environ["OMP_NUM_THREADS"]


def refuse(task: int) -> None:
    raise MaskDMError(f"task {task} is not possible")


def die(task: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_task_runs_once_in_a_process_of_its_own() -> None:
    before = dict(os.environ)
    results = list(run_all(where, [1, 2, 3], 2, unit="task"))
    assert sorted(task for task, _, _ in results) == [1, 2, 3]
    assert len({process for _, process, _ in results} | {os.getpid()}) == 4
    assert {int(threads) for _, _, threads in results} == {max(1, len(os.sched_getaffinity(0)) // 2)}
    assert dict(os.environ) == before


def loaded(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in sys.modules]


def test_a_copy_has_the_libraries_and_says_what_goes_wrong() -> None:
    assert in_a_copy(loaded, ("diffusers", "mlflow", "nothing")) == ["diffusers", "mlflow"]
    with pytest.raises(MaskDMError, match="task 5 is not possible"):
        in_a_copy(refuse, 5)
    with pytest.raises(MaskDMError, match="the process of a copy was killed"):
        in_a_copy(die, 5)


def test_what_a_task_raises_ends_all_of_them() -> None:
    with pytest.raises(MaskDMError, match="task 5 is not possible"):
        list(run_all(refuse, [5], 1, unit="task"))


def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(MaskDMError, match="the process of a task was killed; the same command goes on"):
        list(run_all(die, [5], 1, unit="task"))


HOLDS_A_LOCK = """
import os, signal
from multiprocessing import get_context
from maskdm.engine.workers import run_all
from maskdm.runtime.errors import exit_with_one_line

def die(task):
    lock = get_context("forkserver").Lock()
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    with exit_with_one_line():
        list(run_all(die, [5], 1, unit="task"))
"""


def test_nothing_is_said_below_that_line_of_what_the_process_held(tmp_path: Path) -> None:
    script = tmp_path / "holds_a_lock.py"
    script.write_text(HOLDS_A_LOCK)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, script], env=environment, text=True, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: the process of a task was killed; the same command goes on from here"


def device(task: int) -> tuple[str, bool]:
    return choose_device().type, torch.cuda._is_in_bad_fork()


def test_a_task_can_use_the_gpu_of_the_machine() -> None:
    """No library has asked for it before: CUDA works in no copy of a process that has."""
    here = "cuda" if torch.cuda.is_available() else "cpu"
    assert list(run_all(device, [1], 1, unit="task")) == [(here, False)]


def test_a_gpu_is_given_to_one_task_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a later task ends before an earlier one."""
    monkeypatch.setattr(workers, "visible_gpus", lambda: ["0", "1", "2", "3"])
    tasks = [1.0, 0.0, 0.0, 0.0]
    spans = list(run_all(hold, tasks, 2, unit="task", gpus=2))
    assert {gpus for gpus, _, _ in spans} == {"0,1", "2,3"}
    for (own, began, ended), (other, began_other, ended_other) in itertools.combinations(spans, 2):
        assert own != other or ended <= began_other or ended_other <= began


def hold(seconds: float) -> tuple[str, float, float]:
    """The GPUs of this task, and when it had them."""
    began = time.monotonic()
    time.sleep(seconds)
    return os.environ["CUDA_VISIBLE_DEVICES"], began, time.monotonic()
