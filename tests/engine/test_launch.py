"""The command of dvc.yaml with several processes: the same records, one MLflow run, kills and one-line errors."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from maskdm.engine import sharing, stages
from maskdm.engine.project import Project
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import stage_folder
from maskdm.runtime.processes import ALONE
from maskdm.tracking.records import read_record, read_records, read_step_times, record_path
from tests.servers import free_port
from tests.workspace import ENVIRONMENT, command, make_prepared, write_params

BUDGET = {"train_flops": 6e9, "snapshots": [0.5, 1.0]}  # 240 and 120 steps: time to interrupt the second phase


ON_CORES = ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module", autouse=True)
def _on_cores() -> Iterator[None]:
    """Several processes share the cores: a machine with one GPU would refuse them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its data and its reference."""
    folder = tmp_path_factory.mktemp("project")
    # AdamW: Muon rounds to bfloat16, which turns another order of sums into other weights after a few hundred steps
    make_prepared(folder, budget=BUDGET, recipe="paper", seeds=[0])
    return folder


def launched(folder: Path, stage: str, *arguments: str, processes: str = "2", expect: int = 0) -> str:
    """What the command of dvc.yaml says with so many processes a trial."""
    command_line = (sys.executable, "-m", f"pipeline.{stage}", *arguments)
    return command(folder, *command_line, expect=expect, MASKDM_PROCESSES=processes, CUDA_VISIBLE_DEVICES="")


def weights(folder: Path) -> torch.Tensor:
    """What `pretrain@staged` left with the first seed, in one vector."""
    (path,) = (folder / "runs" / "pretrain" / "staged" / "0" / "weights").glob("*.safetensors")
    return torch.cat([tensor.flatten() for tensor in load_file(path).values()])


def history(folder: Path, stage: str, arm: str) -> list[dict[str, Any]]:
    """What a stage measured with the first seed."""
    content = json.loads((folder / "runs" / stage / arm / "0" / "training.json").read_text())
    rows: list[dict[str, Any]] = content["history"]
    return rows


@pytest.mark.slow
def test_an_interrupted_training_of_two_processes_goes_on_and_ends_like_that_of_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = subprocess.Popen(
        [sys.executable, "-m", "pipeline.pretrain", "staged"],
        cwd=project,
        env=ON_CORES | {"MASKDM_PROCESSES": "2"},
        text=True,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not list((project / "work").glob("*-0/*/phase0.pt")):  # the second phase of the first seed begins
        assert time.monotonic() < deadline
        time.sleep(0.01)
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, said
    assert said.strip().splitlines()[-1] == "interrupted: the same command goes on from here"
    assert "Traceback" not in said

    launched(project, "pretrain", "staged")
    two, of_two = weights(project), history(project, "pretrain", "staged")
    assert not list((project / "work").glob("*/*"))

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    runs = client.search_runs(["1"], "tags.`maskdm.stage` = 'default' and params.seed = '0'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    logged = [metric.step for metric in client.get_metric_history(runs[0].info.run_id, "heldout_loss")]
    assert logged == [row["images_seen"] for row in of_two]

    monkeypatch.chdir(project)
    shutil.rmtree(project / "runs" / "pretrain")
    stages.pretrain(Project.open(ALONE).trial("staged", 0))
    one, of_one = weights(project), history(project, "pretrain", "staged")
    assert ((one - two).norm() / one.norm()).item() < 1e-3  # float32 after 360 steps
    for row, expected in zip(of_two, of_one, strict=True):
        assert row == pytest.approx(expected, rel=1e-2)


@pytest.mark.slow
def test_two_processes_evaluate_like_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(project, "pretrain", "scratch")
    launched(project, "finetune", "scratch")
    launched(project, "evaluate", "scratch")
    two = {record.key: (record, machine) for record, machine in read_records(project, ("default",))}
    assert set(two) == {"scratch/0"}
    assert all(machine and machine.hardware["processes"] == 2 for _, machine in two.values())
    samples = project / "runs" / "evaluate" / "scratch" / "0"
    shutil.move(samples, project / "two")
    monkeypatch.chdir(project)
    opened = Project.open(ALONE)
    stages.evaluate(opened.trial("scratch", 0))
    one = read_record(project, "default", "scratch/0")
    assert one
    of_one, of_two = (np.load(folder / "samples.npy").astype(int) for folder in (samples, project / "two"))
    assert of_one.shape == of_two.shape == (opened.params.evaluation.samples, 1, 8, 8)
    assert np.abs(of_one - of_two).max() <= 1
    for row, expected in zip(two["scratch/0"][0].history, one[0].history, strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            assert row[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-6)), name


def test_a_trial_whose_record_or_samples_are_gone_is_judged_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    trial = Project.open(ALONE).trial("scratch", 0)
    for stage in (stages.pretrain, stages.finetune, stages.evaluate):
        stage(trial)
    record, samples = record_path(project, "default", "scratch/0"), stage_folder("evaluate", "scratch", 0)
    before = record.read_bytes()
    shutil.rmtree(project / "records" / "default")  # the trial's own file, and the one that `pipeline.evaluate` folds
    stages.evaluate(trial)
    assert record.read_bytes() == before
    kept = next(samples.glob("samples-*.npy"))
    kept.unlink()
    stages.evaluate(trial)
    assert kept.is_file()


@pytest.mark.slow
def test_two_processes_time_their_steps_together(project: Path) -> None:
    said = launched(project, "step_time")
    assert said.count("step time:   0%") == 1
    times = read_step_times(project / "records" / "step_time.json")
    assert times.hardware["processes"] == 2
    phases = {arm: len(seconds) for arm, seconds in times.seconds.items()}
    assert phases == {"default/scratch": 1, "default/staged": 3}
    assert all(second > 0 for seconds in times.seconds.values() for second in seconds)


def test_a_mistake_is_one_line_for_all_processes(project: Path) -> None:
    said = launched(project, "pretrain", "stagged", expect=2)
    assert said == "error: stagged: allowed: one of scratch, staged\n"


def test_the_users_own_torchrun_trains_seed_after_seed(project: Path) -> None:
    write_params(project, budget=BUDGET, recipe="paper", seeds=[0, 1])
    shutil.rmtree(project / "runs", ignore_errors=True)
    torchrun = ("torchrun", "--standalone", "--nproc-per-node=2", "-m", "pipeline.pretrain", "scratch")
    command(project, *torchrun, CUDA_VISIBLE_DEVICES="")
    assert {path.parent.name for path in (project / "runs/pretrain/scratch").glob("*/training.json")} == {"0", "1"}


# --- two machines: an agent of torchrun each ----------------------------------------------------------------


def start_agents(*folders: Path) -> list[subprocess.Popen[str]]:
    """Two agents that meet on this machine, as those of two machines do, each with a process of its own."""
    meeting = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    torchrun = ("torchrun", *meeting, "--rdzv-id=1", "--local-addr=127.0.0.1", "-m", "pipeline.pretrain", "staged")
    return [
        subprocess.Popen(
            torchrun, cwd=folder, env=ON_CORES, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for folder in folders
    ]


@pytest.mark.slow
def test_machines_without_a_shared_folder_are_told_so(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "other", symlinks=True)
    agents = start_agents(project, tmp_path / "other")
    said = "".join(agent.communicate(timeout=600)[0] for agent in agents)
    assert all(agent.returncode for agent in agents)
    assert "error: " in said
    assert ": another machine of this torchrun works in another folder; allowed: one that all share\n" in said
    assert not list((project / "work").glob("shared-*"))


@pytest.mark.slow
def test_a_machine_that_is_lost_is_one_line_and_the_same_command_goes_on(project: Path) -> None:
    write_params(project, budget=BUDGET | {"train_flops": 6e10}, recipe="paper", seeds=[0])
    shutil.rmtree(project / "runs", ignore_errors=True)
    agents = start_agents(project, project)
    deadline = time.monotonic() + 600
    while not (state := list((project / "work").rglob("*.pt"))):
        assert all(agent.poll() is None for agent in agents), agents[0].communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    lost = psutil.Process(agents[1].pid)
    for process in (lost, *lost.children(recursive=True)):
        process.kill()
    said = agents[0].communicate(timeout=600)[0]
    assert agents[0].returncode
    assert state
    assert said.count("a process on another machine was lost; the same command goes on from here") <= 1
    again = start_agents(project, project)
    output = [agent.communicate(timeout=600)[0] for agent in again]
    assert [agent.returncode for agent in again] == [0, 0], output
    assert (project / "runs/pretrain/staged/0/training.json").is_file()


@pytest.mark.parametrize("value", ["two", "0", "-1", "1.5"])
def test_a_wrong_number_of_processes_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "visible_gpus", list)
    monkeypatch.setenv(sharing.VARIABLE, value)
    with pytest.raises(MaskDMError, match=f"MASKDM_PROCESSES={value}; allowed: a whole number from 1"):
        sharing.count_processes(trials=2)


@pytest.mark.parametrize(
    ("gpus", "cores", "trials", "processes", "workers"),
    [
        (0, 2, 4, 1, 2),  # a core each
        (0, 16, 4, 1, 4),  # four cores each
        (1, 16, 4, 1, 1),
        (4, 16, 4, 1, 4),
        (8, 16, 4, 2, 4),  # two GPUs each
        (8, 16, 3, 2, 3),
        (8, 16, 1, 8, 1),
    ],
)
def test_trials_share_the_machine(
    gpus: int, cores: int, trials: int, processes: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(sharing.VARIABLE, raising=False)
    monkeypatch.setattr(sharing, "visible_gpus", lambda: [str(gpu) for gpu in range(gpus)])
    monkeypatch.setattr(sharing, "count_cores", lambda: cores)
    assert sharing.count_processes(trials) == processes
    assert sharing.count_workers(trials, processes) == workers


def test_no_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "visible_gpus", lambda: ["0", "1", "2", "3"])
    monkeypatch.setenv(sharing.VARIABLE, "5")
    with pytest.raises(MaskDMError, match="MASKDM_PROCESSES=5; allowed: 1 to 4, the GPUs of this machine"):
        sharing.count_processes(trials=2)
