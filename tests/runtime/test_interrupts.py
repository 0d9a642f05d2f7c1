"""Ctrl-C while the libraries load, in a command and in the processes that it starts."""

import signal
import subprocess
import sys

from maskdm.runtime.errors import GOES_ON
from maskdm.runtime.interrupts import ctrl_c_is_ours, handlers_kept
from tests.imports import PROJECT


def test_ctrl_c_before_a_command_has_begun_is_one_line_too() -> None:
    """As it would come in any of the imports below."""
    for package in ("pipeline", "maskdm.cli"):
        code = f"import {package}; raise KeyboardInterrupt"
        done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, text=True, capture_output=True)
        assert done.returncode == -signal.SIGINT
        assert done.stderr == f"interrupted: {GOES_ON}\n"


def test_processes_that_are_started_leave_ctrl_c_to_the_one_that_starts_them() -> None:
    code = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    before = signal.getsignal(signal.SIGINT)
    with ctrl_c_is_ours():
        started = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert started.stdout == "True\n"
    assert signal.getsignal(signal.SIGINT) == before


def test_handlers_that_a_library_leaves_end_with_its_call() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handlers_kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before
