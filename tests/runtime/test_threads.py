"""How many threads, by the limits of containers, and how they wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import maskdm.runtime.threads
from maskdm.runtime.threads import count_cores, wanted_threads
from tests.imports import PROJECT

HERE = len(os.sched_getaffinity(0))
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/a/b\n", {"a/cpu.max": "100000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "190000 100000\n"}, 1),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, HERE),
        ("0::/a\n", {}, HERE),
        ("0::/a\n", {"a/cpu.max": "torn"}, HERE),
        (
            "2:memory:/m\n1:cpu,cpuacct:/a\n",
            {f"cpu,cpuacct/a/cpu.cfs_{name}_us": "100000" for name in ("quota", "period")},
            1,
        ),
        ("1:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, HERE),
        ("0::/a\n", {"a/cpu.max": f"{(HERE + 5) * 100000} 100000\n"}, HERE),
    ],
)
def test_a_containers_quota_of_cpu_time_counts(tmp_path: Path, own: str, files: dict[str, str], cores: int) -> None:
    write(tmp_path / "own", own)
    for name, content in files.items():
        write(tmp_path / "cgroup" / name, content)
    assert count_cores(tmp_path / "cgroup", tmp_path / "own") == cores


def test_without_control_groups_it_is_the_affinity(tmp_path: Path) -> None:
    assert count_cores(tmp_path, tmp_path / "missing") == HERE


@pytest.mark.parametrize("module", ["pipeline.pretrain", "maskdm.cli", "maskdm.networks.uvit"])
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "10"}, "10")],
)
def test_threads_wait_briefly_unless_the_user_says_how(module: str, given: dict[str, str], spins: str) -> None:
    """Read where torch begins to be imported, which is when OpenMP reads it."""
    code = (
        "import os, sys\n"
        "class Look:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': raise SystemExit(str(os.environ.get('GOMP_SPINCOUNT')))\n"
        "sys.meta_path.insert(0, Look())\n"
        f"import {module}\n"
        "import torch"
    )
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | given
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.stderr.strip() == spins


@pytest.mark.parametrize(("said", "threads"), [("3", 3), ("5,2", 5), ("", HERE), ("0", HERE), ("many", HERE)])
def test_the_threads_that_the_user_wants(said: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskdm.runtime.threads, "count_cores", lambda: HERE)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert wanted_threads() == threads
