"""A comparison of two arms, one with two masked phases, that trains in seconds, and how to run its commands."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.conftest import PARAMS

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def write_params(folder: Path, **changes: Any) -> None:
    """Write `params.yaml`; `changes` replace whole blocks of it."""
    params = json.loads(json.dumps(PARAMS)) | changes
    params["pretrain"] = {"none": [], "staged": params["pretrain"]["staged"]}
    params["arms"] = {name: params["arms"][name] for name in ("scratch", "staged")}
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params, file)
