"""The command of dvc.yaml with several processes: the same records, one MLflow run, kills and one-line errors."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from maskdm.checkpoint import save_snapshot
from maskdm.errors import MaskDMError
from maskdm.processes import ALONE
from maskdm.records import read_step_times
from pipeline import evaluate, launch, prepare, pretrain, reference, training
from pipeline.common import Project
from tests.test_pipeline import command
from tests.toy import ENVIRONMENT, write_params
from tests.workspace import make_workspace

BUDGET = {"train_flops": 6e9, "snapshots": [0.5, 1.0]}  # 240 and 120 steps: time to interrupt the second phase


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its data and its reference."""
    folder = tmp_path_factory.mktemp("project")
    make_workspace(folder, "smoke")
    # AdamW: Muon rounds to bfloat16, which turns another order of sums into other weights after a few hundred steps
    write_params(folder, budget=BUDGET, recipe="paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare.main()
        reference.main()
    return folder


def launched(folder: Path, *arguments: str, processes: str = "2", expect: int = 0) -> str:
    """What the command of dvc.yaml says with so many processes."""
    arguments = (sys.executable, "-m", "pipeline.launch", *arguments)
    return command(folder, *arguments, expect=expect, MASKDM_PROCESSES=processes)


def record(folder: Path, stage: str, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    paths = (folder / "records" / stage / f"{key}{part}.json" for part in ("", ".machine"))
    content, machine = (json.loads(path.read_text()) for path in paths)
    return content, machine


def weights(folder: Path) -> torch.Tensor:
    """What `pretrain@staged` left, in one vector."""
    (path,) = (folder / "runs" / "pretrain" / "staged" / "weights").glob("*.safetensors")
    return torch.cat([tensor.flatten() for tensor in load_file(path).values()])


def test_an_interrupted_training_of_two_processes_goes_on_and_ends_like_that_of_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = subprocess.Popen(
        [sys.executable, "-m", "pipeline.launch", "pretrain", "staged"],
        cwd=project,
        env=ENVIRONMENT | {"MASKDM_PROCESSES": "2"},
        text=True,
        stderr=subprocess.PIPE,
    )
    # Between two phases there is no step to name: wait until the second one is under way in both processes.
    assert interrupted.stderr
    deadline = Timer(120, interrupted.kill)
    deadline.start()
    seen = ""
    while "pretrain crop" not in seen:
        seen += (character := interrupted.stderr.read(1))
        assert character, seen
    deadline.cancel()
    time.sleep(0.1)
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, said
    assert len(re.findall(r"interrupted: saved at step \d+ of \d+; the same command goes on", said)) == 1
    assert "Traceback" not in said

    launched(project, "pretrain", "staged")
    two, (of_two, machine) = weights(project), record(project, "pretrain", "staged")
    assert machine["hardware"]["processes"] == 2
    assert not list((project / "work").glob("*/*"))

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    runs = client.search_runs(["1"], "tags.`maskdm.stage` = 'pretrain'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    logged = [metric.step for metric in client.get_metric_history(runs[0].info.run_id, "heldout_loss")]
    assert logged == [row["images_seen"] for row in of_two["history"]]

    monkeypatch.chdir(project)
    opened = Project.open(ALONE)
    start = pretrain.initial_network(opened.params, opened.data.info["num_classes"])
    training.run_stage(opened, "pretrain", "staged", "staged", opened.plans("staged"), start)
    one, (of_one, machine) = weights(project), record(project, "pretrain", "staged")
    assert machine["hardware"]["processes"] == 1
    assert of_one["identity"] == of_two["identity"]
    assert ((one - two).norm() / one.norm()).item() < 1e-3  # float32 after 360 steps
    for row, expected in zip(of_two["history"], of_one["history"], strict=True):
        assert row == pytest.approx(expected, rel=1e-2)


def test_two_processes_evaluate_like_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    opened = Project.open(ALONE)
    network = pretrain.initial_network(opened.params, opened.data.info["num_classes"])
    save_snapshot(project / "runs" / "finetune" / "scratch" / "weights", network)
    save_snapshot(project / "runs" / "finetune" / "scratch" / "snapshots" / "0500", network)
    said = launched(project, "evaluate", "scratch")
    assert said.count("sample ddim:   0%") == said.count("features:   0%") == 2  # a bar for each snapshot, not process
    (two, machine), samples = record(project, "evaluate", "scratch"), project / "runs" / "evaluate" / "scratch"
    assert machine["hardware"]["processes"] == 2
    shutil.move(samples, project / "two")
    evaluate.run_stage(opened, "scratch")
    one, _ = record(project, "evaluate", "scratch")
    of_one, of_two = (np.load(folder / "samples.npy").astype(int) for folder in (samples, project / "two"))
    assert of_one.shape == of_two.shape == (opened.params.evaluation.samples, 1, 8, 8)
    assert np.abs(of_one - of_two).max() <= 1
    for row, expected in zip(two["history"], one["history"], strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            assert row[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-6)), name


def test_two_processes_time_their_steps_together(project: Path) -> None:
    said = launched(project, "step_time")
    assert said.count("step time:   0%") == 1
    times = read_step_times(project / "records" / "step_time.json")
    assert times.hardware["processes"] == 2
    assert {arm: len(seconds) for arm, seconds in times.seconds.items()} == {"scratch": 1, "staged": 3}
    assert all(second > 0 for seconds in times.seconds.values() for second in seconds)


def test_a_mistake_is_one_line_for_all_processes(project: Path) -> None:
    said = launched(project, "pretrain", "stagged", expect=2)
    assert said == "error: stagged: allowed: one of none, staged\n"


@pytest.mark.parametrize("value", ["two", "0", "-1", "1.5"])
def test_a_wrong_number_of_processes_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv(launch.VARIABLE, value)
    with pytest.raises(MaskDMError, match=f"MASKDM_PROCESSES={value}; allowed: a whole number from 1"):
        launch.count_processes()


def test_there_is_one_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launch.VARIABLE, raising=False)
    for gpus, expected in ((0, 1), (1, 1), (4, 4)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert launch.count_processes() == expected
    monkeypatch.setenv(launch.VARIABLE, "5")
    with pytest.raises(MaskDMError, match="MASKDM_PROCESSES=5; allowed: 1 to 4, the GPUs of this machine"):
        launch.count_processes()
