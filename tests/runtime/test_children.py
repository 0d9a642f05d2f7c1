"""What becomes of a process whose parent is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.imports import PROJECT

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""
CHILD = """
import pipeline, signal, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
open("begun", "x")
try:
    time.sleep(60)
except KeyboardInterrupt:
    open("saved", "x")
"""


@pytest.mark.parametrize("is_stage", [True, False])
def test_a_stage_whose_dvc_is_killed_saves_its_state_and_ends(is_stage: bool, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)} | ({"DVC_STAGE": "finetune@crops"} if is_stage else {})
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_for(tmp_path / "begun")
        parent.kill()
    if is_stage:
        wait_for(tmp_path / "saved")
        return
    time.sleep(1.5)  # three looks
    os.kill(child, signal.SIGKILL)
    assert not (tmp_path / "saved").exists()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name}: never written"
        time.sleep(0.05)
