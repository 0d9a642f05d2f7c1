"""A copy of the project in which a profile can run without touching the project's own settings and results.

python -m tests.workspace FOLDER PROFILE
"""

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ruamel.yaml import YAML

from tests.conftest import PARAMS

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
SOURCES = ("maskdm", "pipeline", "profiles", "study", "dvc.yaml", ".dvcignore")
PROJECT = Path(__file__).resolve().parent.parent


def make_workspace(folder: Path, profile: str) -> None:
    """Fill `folder` with the project's sources, with `profile` as its `params.yaml`; what was run there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        source, target = PROJECT / name, folder / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    shutil.copy2(folder / "profiles" / f"{profile}.yaml", folder / "params.yaml")
    if not (folder / ".dvc").is_dir():
        quiet = os.environ | {"DVC_NO_ANALYTICS": "1"}  # `init` itself would report before the setting below is there
        subprocess.run(["dvc", "init", "--quiet", "--no-scm"], cwd=folder, check=True, env=quiet)
        for setting in ("core.analytics", "core.check_update"):
            subprocess.run(["dvc", "config", setting, "false"], cwd=folder, check=True)
    shutil.copytree(PROJECT / ".dvc" / "plots", folder / ".dvc" / "plots", dirs_exist_ok=True)


def write_params(folder: Path, **changes: Any) -> None:
    """Write `params.yaml` for two arms, one with two masked phases, that train in seconds; `changes` replace blocks."""
    params = PARAMS | changes
    params["arms"] = {name: params["arms"][name] for name in ("scratch", "staged")}
    write_yaml(folder / "params.yaml", params)


def write_yaml(path: Path, content: Any) -> None:
    """Write settings; what appears twice in them is written twice."""
    with path.open("w") as file:
        YAML(typ="safe").dump(json.loads(json.dumps(content)), file)


def make_prepared(folder: Path, **changes: Any) -> None:
    """A workspace of toy settings (`changes`: see `write_params`) with what `prepare` and `reference` leave.

    These run in this process, which has its libraries loaded.
    """
    make_workspace(folder, "smoke")
    write_params(folder, **changes)
    for module in ("prepare", "reference"):
        with contextlib.chdir(folder):
            importlib.import_module(f"pipeline.{module}").main([])


def command(folder: Path, *arguments: str, expect: int = 0, timeout: float = 600, **environment: str) -> str:
    """Run a command in `folder`, for so many seconds at most; returns what it printed."""
    done = subprocess.run(
        arguments,
        cwd=folder,
        env=ENVIRONMENT | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
    )
    assert done.returncode == expect, done.stdout
    return done.stdout


def stage(folder: Path, name: str, *arguments: str, expect: int = 0, timeout: float = 600, **environment: str) -> str:
    words = (sys.executable, "-m", f"pipeline.{name}", *arguments)
    return command(folder, *words, expect=expect, timeout=timeout, **environment)


def refusal(folder: Path, module: str, *arguments: str) -> str:
    """What `python -m pipeline.MODULE` says in `folder` when it refuses its input with status 2.

    It runs in this process: a process of its own would load libraries for ten seconds, to say one line.
    """
    main = importlib.import_module(f"pipeline.{module}").main
    said, status, handler = io.StringIO(), None, signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.chdir(folder), contextlib.redirect_stderr(said), patch("sys.argv", [module, *arguments]):
            main()
    except SystemExit as end:
        status = end.code
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert status == 2, f"status {status}: {said.getvalue()}"
    return said.getvalue()


if __name__ == "__main__":
    make_workspace(Path(sys.argv[1]), sys.argv[2])
