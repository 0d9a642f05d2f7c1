"""A toy project that all commands can be tried on, and how they are run."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from maskdm import cli
from tests.workspace import ENVIRONMENT, make_workspace, write_params

Run = Callable[..., int]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy project with prepared data, a reference, and the weights of `scratch` with seed 0."""
    folder = tmp_path_factory.mktemp("project")
    make_workspace(folder, "smoke")
    write_params(folder, budget={"train_flops": 3e9, "snapshots": [0.5, 1.0]})
    for stage in ("pipeline.prepare", "pipeline.reference"):
        subprocess.run([sys.executable, "-m", stage], cwd=folder, env=ENVIRONMENT, check=True)
    command = [sys.executable, "-c", "from maskdm.cli import main; main()", "train", "scratch", "--judge"]
    subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True)
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working folder."""
    folder = tmp_path / "project"
    shutil.copytree(trained, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line in this process; gives its status."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["maskdm", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return run
