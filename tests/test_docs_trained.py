"""Commands of the documentation that train, or that need what was trained, in a toy project that is finished.

Each block runs in a copy of its own. Servers are ended as soon as they answer.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from maskdm.config.reading import load_recipe
from maskdm.networks.authors import NUM_HEADS
from maskdm.networks.uvit import UViT
from maskdm.training.checkpoint import save_snapshot
from tests.conftest import PARAMS
from tests.datasets.test_survey import pictures
from tests.engine.test_import_weights import checkpoint
from tests.networks.test_authors import their_weights
from tests.pipeline.test_study import DENSE, FIRST, write_blocks
from tests.pipeline.test_tune import ARMS as TUNED_ARMS
from tests.raw_data import place, zip_of
from tests.servers import USER, Postgres, mlflow_server, postgres
from tests.swiss_roll.test_swiss_roll import TOY as SWISS_ROLL
from tests.test_docs import SLOW, Block, named
from tests.workspace import ENVIRONMENT, PROJECT, command, make_workspace, write_yaml

pytestmark = pytest.mark.slow

ARMS: dict[str, Any] = {  # by the names that the documentation uses
    "scratch": [DENSE],
    "block90": [{"mask": {"strategy": "block", "ratio": 0.75, "block": 2}, "share": 0.25, "batch_size": 16}, DENSE],
    "crops": [{"mask": {"strategy": "crop", "crop": 3}, "share": 0.25, "batch_size": 16}, DENSE],
    "control": [{"share": 0.25, "batch_size": 9}, DENSE],
}
OF_MASKS: dict[str, Any] = {  # three masks, of which `maskdm advise` can say an order
    "scratch": [DENSE],
    "block75": [{"mask": {"strategy": "block", "ratio": 0.75, "block": 2}, "share": 0.25, "batch_size": 16}, DENSE],
    "crop4": [{"mask": {"strategy": "crop", "crop": 2}, "share": 0.25, "batch_size": 16}, DENSE],
    "patch75": [{"mask": {"strategy": "patch", "ratio": 0.75}, "share": 0.25, "batch_size": 16}, DENSE],
}
STUDY: dict[str, Any] = {
    "sets": {},
    "set_parts": {},
    "set_tunings": {},
    "parts": {
        "masks": FIRST | {"arms": OF_MASKS},
        "methods": FIRST | {"arms": {name: ARMS[name] for name in ("scratch", "crops")}},
        "confirm": FIRST | {"seeds": [3, 4]},
        "confirm-32": FIRST | {"seeds": [5, 6]},
    },
    "tunings": {
        "rates": {"seed": 9, "train_flops": 4e9, "trials": 2, "recipe": "adamw", "model": PARAMS["model"]}
        | {"arms": TUNED_ARMS}
    },
    "search": PARAMS["search"],
    "swiss_roll": SWISS_ROLL,
}
PASSWORD = "..."  # as the pages write it
SERVER = f"""#!{sys.executable}
# A program whose servers end as soon as they answer.
import os, signal, subprocess, sys, time, urllib.request
program = os.path.join({str(Path(sys.executable).parent)!r}, os.path.basename(sys.argv[0]))
arguments = sys.argv[1:]
if arguments[:1] not in (["ui"], ["server"]):
    os.execv(program, [program, *arguments])
address = f"http://127.0.0.1:{{8080 if '--search' in arguments else 5000}}/"
server = subprocess.Popen([program, *arguments], start_new_session=True)
for _ in range(600):
    assert server.poll() is None, server.returncode
    try:
        urllib.request.urlopen(address, timeout=10)
        break
    except OSError:
        time.sleep(0.5)
else:
    raise TimeoutError(address)
os.killpg(server.pid, signal.SIGINT)
server.wait()
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project under git, in which everything was run, with what the pages suppose that the reader has."""
    folder = tmp_path_factory.mktemp("docs") / "project"
    make_workspace(folder, "smoke")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".gitignore"):
        shutil.copy2(PROJECT / name, folder)
    for name in ("docs", "tests"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_yaml(folder / "params.yaml", PARAMS | {"seeds": [1, 2], "arms": ARMS, "controls": {"control": "crops"}})
    shutil.copy2(folder / "params.yaml", folder / "profiles" / "celeba64.yaml")  # "another profile"
    write_blocks(folder, STUDY)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("pyvenv.cfg", "lib"):  # by these Python knows where its packages are
        (folder / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    for program in Path(sys.executable).parent.iterdir():
        (programs / program.name).symlink_to(program)
    for name in ("maskdm", "mlflow"):
        (programs / name).unlink()
        (programs / name).write_text(SERVER)
        (programs / name).chmod(0o755)
    (folder / ".venv" / "ready").touch()

    command(folder, "git", "init", "--quiet")
    command(folder, "dvc", "config", "--unset", "core.no_scm")
    command(folder, "dvc", "repro", timeout=3000)
    command(folder, "dvc", "repro", "study/dvc.yaml", timeout=3000)
    command(folder, "dvc", "repro", "--force", "--single-item", "page")  # it shows the study's budgets, too
    give_what_the_reader_has(folder)
    command(folder, "git", "add", "--all")
    command(folder, "git", "-c", "user.name=Toy", "-c", "user.email=toy@example.org", "commit", "--quiet", "-m", "Toy")
    return folder


def give_what_the_reader_has(folder: Path) -> None:
    """Images, weights of others, and weights that know classes."""
    objective, size = load_recipe(PARAMS["recipe"]).objective, {"image_size": (8, 8), "patch_size": 2, "in_channels": 1}
    network = UViT(**size, embed_dim=16, depth=3, num_heads=2, num_classes=10)
    save_snapshot(folder / "classes", network, objective)
    torch.save(checkpoint(their_weights(), their_weights()), folder / "small.pt")
    command(folder, "maskdm", "import-weights", "small.pt", "imported", "--num-heads", "2")
    for arm in ("crops", "scratch"):
        command(folder, "maskdm", "train", arm, "--seed", "7", "--judge")
    for name in ("path/to/images", "mine", "real"):
        place(folder / name, pictures(120, size=(12, 10)))
    zip_of(folder / "real.zip", pictures(120, size=(12, 10)))


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres(PASSWORD) as server:
        yield server


@named(SLOW)
def test_a_block_that_trains_runs(block: Block, finished: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    project = shutil.copytree(finished, tmp_path / "project", symlinks=True)
    environment = ENVIRONMENT | {"PATH": f"{project}/.venv/bin:{os.environ['PATH']}", "DISPLAY": "", "BROWSER": "true"}
    code = block.code.replace("/srv/mlflow", "artifacts").replace("mlflow.example.org", "127.0.0.1")
    if "import-weights" in code:  # of a network as wide as the authors' smallest
        shutil.rmtree(project / "imported")
        torch.save(checkpoint(their_weights(dim=min(NUM_HEADS)), None), project / "model-20.pt")
    if "MLFLOW_TRACKING_URI" in code:
        server = request.getfixturevalue("server")
        code = code.replace("127.0.0.1:5000", f"127.0.0.1:{server.port}")
    elif "createdb" in code or "postgresql" in code or "--join" in code:
        database = request.getfixturevalue("database")
        environment |= {"PGHOST": "127.0.0.1", "PGPORT": str(database.port), "PGUSER": USER, "PGPASSWORD": PASSWORD}
        environment |= {"MASKDM_SEARCH_STORAGE": "postgresql+psycopg://127.0.0.1/search"}
        prepare = "dropdb --if-exists" if "createdb" in code else "createdb"  # the server is that of all blocks
        subprocess.run([*prepare.split(), "search"], env=environment, check=False)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture
def server(database: Postgres, tmp_path: Path) -> Iterator[Any]:
    with mlflow_server(tmp_path, database) as found:
        yield found
