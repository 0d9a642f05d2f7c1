"""Stages one at a time, through their real entry points: kills, what is done already, and bad input."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PARAMS
from tests.kills import often, wait_for_workers
from tests.workspace import ENVIRONMENT, command, make_prepared, make_workspace, refusal, stage, write_params


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its data, and nothing trained."""
    folder = tmp_path_factory.mktemp("prepared")
    make_prepared(folder, budget={"train_flops": 8e9, "snapshots": [0.5, 1.0]})
    often(folder)
    return folder


@pytest.fixture(scope="module")
def pretrained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it in which an arm was pre-trained without a break."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("pretrained") / "project")
    stage(folder, "pretrain", "staged")
    return folder


def weights(folder: Path) -> list[bytes]:
    """Of all seeds."""
    return [path.read_bytes() for path in sorted((folder / "runs/pretrain/staged").glob("*/weights/*.safetensors"))]


def start_training(folder: Path, phase: int) -> "subprocess.Popen[str]":
    """The stage pretrain@staged, under way and with a checkpoint of this phase saved."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.pretrain", "staged"],
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not list((folder / "work").glob(f"*/*/phase{phase}.pt")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_stage_that_is_killed_and_interrupted_goes_on_with_the_same_command_to_the_same_weights(
    pretrained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pretrained, tmp_path / "project")
    shutil.rmtree(folder / "runs")
    killed = start_training(folder, phase=0)
    killed.kill()
    killed.communicate()
    wait_for_workers(folder)
    assert not list((folder / "runs").glob("pretrain/staged/*/training.json"))

    interrupted = start_training(folder, phase=1)
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert said.strip().splitlines()[-1] == "interrupted: the same command goes on from here"
    assert not list((folder / "runs").glob("pretrain/staged/*/training.json"))

    stage(folder, "pretrain", "staged")
    assert weights(folder) == weights(pretrained)
    assert len(weights(folder)) == len(PARAMS["seeds"])
    assert not list((folder / "work").glob("*/*"))


WITHOUT_LIBRARIES = """
import sys
from pipeline import pretrain

pretrain.main()
assert "diffusers" not in sys.modules, "only the trials need it, and it takes seconds to load"
"""


def test_what_is_done_is_not_done_again(pretrained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (pretrained / "runs").rglob("*") if path.is_file()}
    done = next((pretrained / "runs" / "pretrain" / "staged").glob("*/training.json"))
    left = pretrained / "work" / f"pretrain-staged-{done.parent.name}" / json.loads(done.read_text())["identity"]
    left.mkdir(parents=True)  # by a kill just after the results were written
    (left / "phase0.pt").write_bytes(b"what it resumes from")
    command(pretrained, sys.executable, "-c", WITHOUT_LIBRARIES, "staged")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not left.exists()


def test_a_fine_tuning_does_not_begin_anew_where_the_state_is_missing(pretrained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pretrained, tmp_path / "project")
    for state in (folder / "runs" / "pretrain" / "staged").glob("*/state.pt"):
        state.unlink()
    said = stage(folder, "finetune", "staged", expect=2)
    assert re.match(r"error: runs/pretrain/staged/\d/state.pt: no such file; delete", said.strip().splitlines()[-1])
    assert not (folder / "runs" / "finetune" / "staged").exists()


@pytest.mark.slow
def test_an_unreachable_tracking_server_does_not_stop_training(prepared: Path) -> None:
    server = "http://127.0.0.1:9"
    shutil.rmtree(prepared / "runs", ignore_errors=True)
    output = stage(prepared, "pretrain", "staged", MLFLOW_TRACKING_URI=server)
    assert output.count("warning: tracking failed") == len(PARAMS["seeds"])
    assert "`maskdm sync` uploads what is missing" in output
    refused = command(prepared, "maskdm", "sync", expect=2, MLFLOW_TRACKING_URI=server)
    assert refused.strip().splitlines()[-1].startswith(f"error: tracking store {server}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("pretrain", "stagged"), "error: stagged: allowed: one of scratch, staged"),
        (("report",), "error: records/"),
    ],
)
def test_a_wrong_arm_or_a_missing_record_is_one_line(
    prepared: Path, tmp_path: Path, arguments: tuple[str, str], says: str
) -> None:
    make_workspace(tmp_path, "smoke")
    write_params(tmp_path)
    (tmp_path / "data").symlink_to(prepared / "data")
    said = refusal(tmp_path, *arguments)
    assert said.startswith(says)
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "arm", "before"),
    [("finetune", "staged", "pretrain"), pytest.param("evaluate", "scratch", "finetune", marks=pytest.mark.slow)],
)
def test_a_missing_result_of_the_stage_before_is_one_line(
    prepared: Path, tmp_path: Path, name: str, arm: str, before: str
) -> None:
    make_workspace(tmp_path, "smoke")
    write_params(tmp_path)
    (tmp_path / "data").symlink_to(prepared / "data")
    assert stage(tmp_path, name, arm, expect=2).strip().splitlines()[-1].startswith(f"error: runs/{before}/{arm}/")


def test_a_mistake_in_the_settings_stops_every_stage_with_one_line(tmp_path: Path) -> None:
    make_workspace(tmp_path, "smoke")
    write_params(tmp_path, baselyne=1)
    said = refusal(tmp_path, "prepare")
    assert said.strip() == "error: params.yaml: baselyne is not a known key; did you mean baseline?"
    assert not (tmp_path / "data").exists()
