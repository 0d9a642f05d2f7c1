"""One fault of each kind, each at a random moment of a random stage; `python -m tests.faults` has a hundred."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import PROJECT


@pytest.mark.slow
def test_after_a_fault_the_same_command_goes_on_to_the_same_results(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults", "--count", "8", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": equal") == 8
