"""A copy of the project in which a profile can run without touching the project's own settings and results.

python -m tests.workspace FOLDER PROFILE
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    params = json.loads(json.dumps(PARAMS)) | changes
    params["arms"] = {name: params["arms"][name] for name in ("scratch", "staged")}
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params, file)


if __name__ == "__main__":
    make_workspace(Path(sys.argv[1]), sys.argv[2])
