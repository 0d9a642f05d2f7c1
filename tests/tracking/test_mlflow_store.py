"""Tracking against real MLflow stores: nothing lost, nothing doubled, and no failure of it reaches training."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import sqlite_path
from maskdm.runtime.paths import INDEX
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import Machine, Record, Stage, write_record
from maskdm.tracking.subject import Subject

UNREACHABLE = "http://127.0.0.1:9"
DATA = {"name": "digits", "sha256": "ab" * 32, "train": 1500, "heldout": 297, "shape": [1, 8, 8]}
PARAMS = {"arm": "one", "seed": 0, "mask.strategy": "block", "mask.ratio": 0.9, "lr": 2e-4, "override": None}
TRAINING: list[dict[str, Any]] = [
    {
        "step": 10 * n,
        "phase": 0,
        "images_seen": 640 * n,
        "train_flops": 3e9 * n,
        "loss": 1 / n,
        "lr": 2e-4,
        "grad_norm": 0.5,
        "heldout_loss": 1.5 / n,
    }
    for n in range(1, 41)
]
EVALUATION: list[dict[str, Any]] = [
    {
        "fraction": fraction,
        "images_seen": int(25600 * fraction),
        "train_flops": 120e9 * fraction,
        "fd_effnet_lite0": 10 / fraction,
        "kid": 0.1 / fraction,
        "precision": 0.5,
        "recall": 0.25,
        "density": 0.75,
        "coverage": 0.125,
        "samples": 1000,
        "reference": 10000,
        "sampler": "ddim",
        "num_inference_steps": 25,
        "eta": 0.0,
        "weights": "ema",
        "extractor": "effnet_lite0",
        "input_size": 96,
    }
    for fraction in (0.5, 1.0)
]
COMPARED = ("heldout_loss", "fd_effnet_lite0", "kid")
OF_SAMPLES = ("fd_effnet_lite0", "kid", "precision", "recall", "density", "coverage")
MACHINE = Machine(
    started_at="2026-01-02T03:04:05+00:00",
    git={"commit": "c0ffee", "branch": "trunk", "dirty": True},
    dvc={"stage": "evaluate@one", "data_md5": "d" * 32 + ".dir"},
    hardware={"device": "cpu", "cores": 2},
    stage_seconds=20.0,
    images_per_second=32.0,
    peak_memory_bytes=None,
    seconds=[0.5 * n for n in range(1, 41)] + [3.0, 7.0],
)


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MLFLOW_TRACKING_URI", "DVC_STAGE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a store, which the tests share (making one takes seconds): each uses arms of its own."""
    return tmp_path_factory.mktemp("my project")


def trial(arm: str, seed: int = 0, **changes: Any) -> Record:
    """A trial of the comparison of params.yaml."""
    params = PARAMS | {"arm": arm, "seed": seed}
    record = Record("default", f"{arm}/{seed}", arm, f"1234{seed}", params, DATA, summary={}, history=[])
    return replace(record, **changes)


def measured(arm: str, seed: int = 0, factor: float = 1.0, **changes: Any) -> Record:
    """One that is finished; `factor` is on its measures of quality."""
    rows = [
        {name: value * factor if name in COMPARED else value for name, value in row.items()}
        for row in (*TRAINING, *EVALUATION)
    ]
    summary = {name: rows[-1][name] for name in OF_SAMPLES}
    summary |= {name: rows[39][name] for name in ("heldout_loss", "images_seen", "train_flops")}
    return replace(trial(arm, seed), summary=summary, history=rows, **changes)


def live(project: Path, arm: str, **changes: Any) -> AbstractContextManager[mlflow_store.LiveRun]:
    return mlflow_store.live_run(project, trial(arm, **changes))


def client(project: Path) -> MlflowClient:
    return MlflowClient(mlflow_store.store_uri(project))


def runs(project: Path, condition: str) -> list[Run]:
    experiment = client(project).get_experiment_by_name("maskdm")
    assert experiment
    return list(client(project).search_runs([experiment.experiment_id], condition))


def run_of(project: Path, name: str) -> Run:
    [run] = runs(project, f"tags.`mlflow.runName` = '{name}'")
    return run


def data_set(run: Run) -> tuple[str, str]:
    """Name and digest of the one data set that is the run's input."""
    assert run.inputs
    [found] = run.inputs.dataset_inputs
    return found.dataset.name, found.dataset.digest


def series(project: Path, name: str) -> dict[str, list[tuple[int, float]]]:
    """All that is logged to the run of this name but system metrics: (step, value), sorted, with repetitions."""
    run = run_of(project, name)
    return {
        metric: sorted((m.step, m.value) for m in client(project).get_metric_history(run.info.run_id, metric))
        for metric in run.data.metrics
        if not metric.startswith("system/")
    }


def expected(rows: list[dict[str, Any]], metrics: tuple[str, ...], compared: tuple[str, ...]) -> dict[str, Any]:
    by_images = {metric: [(row["images_seen"], row[metric]) for row in rows] for metric in metrics}
    by_gflops = {
        f"{metric}_by_gflops": [(round(row["train_flops"] / 1e9), row[metric]) for row in rows] for metric in compared
    }
    return by_images | by_gflops


LOGGED = ("images_seen", "train_flops", "loss", "lr", "grad_norm", "heldout_loss")
WHOLE_TRAINING = expected(TRAINING, LOGGED, compared=("heldout_loss",))
JUDGED = expected(EVALUATION, OF_SAMPLES, compared=("fd_effnet_lite0", "kid"))
WHOLE_TRIAL = WHOLE_TRAINING | JUDGED
MACHINE_METRICS = {"stage_seconds": [(0, 20.0)], "images_per_second": [(0, 32.0)]}


# --- what a run holds ---------------------------------------------------------------------------------------


def test_a_command_that_does_not_track_does_not_pay_for_mlflow() -> None:
    code = "import sys, maskdm.tracking.mlflow_store; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_says_what_it_came_from(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_store, "git_state", lambda root: MACHINE.git)
    monkeypatch.setattr(mlflow_store, "dvc_state", lambda root: MACHINE.dvc)
    with live(project, "origin"):
        pass
    run = run_of(project, "origin, seed 0")
    assert run.data.params == {
        **{"arm": "origin", "seed": "0", "mask.strategy": "block", "mask.ratio": "0.9", "lr": "0.0002"},
        "override": "None",
    }
    assert (
        run.data.tags.items()
        >= {
            "mlflow.source.git.commit": "c0ffee",
            "mlflow.source.git.branch": "trunk",
            "mlflow.source.name": "dvc.yaml:evaluate@origin",
            "maskdm.git_dirty": "True",
            "maskdm.dvc_stage": "evaluate@one",
            "maskdm.stage": "default",
            "maskdm.key": "origin/0",
            "maskdm.arm": "origin",
            "maskdm.data_hash": "ab" * 8,
        }.items()
    )
    assert data_set(run) == ("digits", "d" * 32 + ".dir")


def test_without_dvc_the_data_set_is_known_by_its_own_hash(project: Path) -> None:
    with live(project, "plain"):
        pass
    name, digest = data_set(run_of(project, "plain, seed 0"))
    assert name == "digits"
    assert digest == ("ab" * 32)[:36]  # MLflow keeps no more


def test_other_params_have_another_hash_and_are_another_arm(project: Path) -> None:
    for identity, lr in (("a", 1), ("b", 2), ("c", 2)):
        with live(project, "hash", identity=identity, params={"arm": "hash", "seed": 0, "lr": lr}):
            pass
    found = {run.data.params["lr"]: run.data.tags for run in runs(project, "tags.`mlflow.runName` = 'hash, seed 0'")}
    assert found["1"]["maskdm.params_hash"] != found["2"]["maskdm.params_hash"]
    assert len(runs(project, "tags.`mlflow.runName` = 'hash'")) == 2


@pytest.mark.parametrize(
    ("stage", "key", "name", "parent", "source"),
    [
        ("default", "crops/2", "crops, seed 2", "crops", "dvc.yaml:evaluate@crops"),
        ("study", "share/crops-2", "share: crops, seed 2", "share: crops", "python -m pipeline.study share"),
        ("search", "trials/0012", "search: trial 12", "search: best trial", "dvc.yaml:search"),
        ("search", "confirm/crops-seed2", "search: confirm crops, seed 2", "search: confirm crops", "dvc.yaml:search"),
        (
            "large_search",
            "trials/0012",
            "large search: trial 12",
            "large search: best trial",
            "study/dvc.yaml:large_search",
        ),
    ],
)
def test_names_say_what_a_run_is_about(
    project: Path, stage: Stage, key: str, name: str, parent: str, source: str
) -> None:
    with live(project, "crops", seed=2, stage=stage, key=key):
        pass
    run = run_of(project, name)
    assert run.data.tags["mlflow.source.name"] == source
    above = run_of(project, parent)
    assert run.data.tags["mlflow.parentRunId"] == above.info.run_id
    assert above.data.tags["mlflow.source.name"] == source
    assert data_set(above)[0] == "digits"


def test_paths_are_no_parameters(project: Path) -> None:
    with live(project, "paths", params=PARAMS | {"data.root": "/home/me", "evaluation.weights": "/tmp/w"}):
        pass
    assert run_of(project, "paths, seed 0").data.params.keys() == PARAMS.keys()


def test_the_stages_of_a_trial_are_one_run_below_that_of_the_arm(project: Path) -> None:
    for rows in (TRAINING[:10], TRAINING, [*TRAINING, *EVALUATION]):  # pretrain, finetune, evaluate
        with live(project, "staged") as run:
            run.log_history(rows)
    assert series(project, "staged, seed 0") == WHOLE_TRIAL
    [child] = runs(project, f"tags.`mlflow.parentRunId` = '{run_of(project, 'staged').info.run_id}'")
    assert child.info.run_name == "staged, seed 0"


def test_training_is_logged_against_images_and_compute(project: Path) -> None:
    with live(project, "curves") as run:
        run.log_history(TRAINING)
    assert series(project, "curves, seed 0") == WHOLE_TRAINING


def test_the_settings_of_a_measurement_are_no_metrics(project: Path) -> None:
    with live(project, "measured") as run:
        run.log_history(EVALUATION)
    wanted = expected(EVALUATION, ("images_seen", "train_flops", *OF_SAMPLES), compared=("fd_effnet_lite0", "kid"))
    assert series(project, "measured, seed 0") == wanted


def test_time_and_hardware_are_logged_as_far_as_they_are_known(project: Path) -> None:
    with live(project, "timed") as run:
        run.log_machine(MACHINE)
    assert series(project, "timed, seed 0") == MACHINE_METRICS
    assert run_of(project, "timed, seed 0").data.tags["hardware.cores"] == "2"


def test_artifacts_lie_in_the_project_wherever_the_command_was_started(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.png").write_bytes(b"pixels")
    with live(project, "pictures") as run:
        run.log_artifact(Path("grid.png"))
    [found] = (project / "mlartifacts").rglob("grid.png")
    assert found.read_bytes() == b"pixels"
    assert not list(tmp_path.glob("ml*"))


def test_the_machine_is_watched_while_the_run_is_live(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    deadline = time.monotonic() + 30
    with live(project, "watched"):
        while time.monotonic() < deadline and not run_of(project, "watched, seed 0").data.metrics:
            time.sleep(0.05)
    assert "system/cpu_utilization_percentage" in run_of(project, "watched, seed 0").data.metrics


# --- how a run ends, and goes on ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (SystemExit, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_ends_as_its_stage_does(project: Path, error: type[BaseException], status: str) -> None:
    arm = f"ends-{error.__name__}"
    with pytest.raises(error), live(project, arm):
        raise error
    assert run_of(project, f"{arm}, seed 0").info.status == status
    with live(project, arm):
        assert run_of(project, f"{arm}, seed 0").info.status == "RUNNING"
    assert run_of(project, f"{arm}, seed 0").info.status == "FINISHED"
    assert run_of(project, arm).info.status == "FINISHED"


KILLED_IN_A_BATCH = """
import os, signal, sys
sys.path[:0] = [sys.argv[2]]
from pathlib import Path
from mlflow import MlflowClient
from test_mlflow_store import TRAINING, live

log_batch = MlflowClient.log_batch

def half_of_it(self, run_id, metrics=(), *args, **kwargs):
    log_batch(self, run_id, metrics[: len(metrics) // 2], *args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

with live(Path(sys.argv[1]), "killed") as run:
    run.log_history(TRAINING[:10])
    MlflowClient.log_batch = half_of_it
    run.log_history(TRAINING[:30])
"""


def test_a_run_killed_in_the_middle_of_a_batch_goes_on_without_loss_or_repetition(project: Path) -> None:
    arguments = [sys.executable, "-c", KILLED_IN_A_BATCH, str(project), str(Path(__file__).parent)]
    assert subprocess.run(arguments).returncode == -signal.SIGKILL
    before = run_of(project, "killed, seed 0")
    assert before.info.status == "RUNNING"
    assert 10 < len(series(project, "killed, seed 0")["loss"]) < 30

    with live(project, "killed") as run:
        for rows in (20, 30, 40):  # it resumes from a checkpoint older than what was logged
            run.log_history(TRAINING[:rows])
    assert series(project, "killed, seed 0") == WHOLE_TRAINING
    after = run_of(project, "killed, seed 0")
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")


def test_of_rows_that_fall_on_one_step_the_first_stays_however_many_are_logged_at_once(project: Path) -> None:
    rows = [{**row, "train_flops": 4e8 * number} for number, row in enumerate(TRAINING[:10])]
    with live(project, "at once") as run:
        run.log_history(rows)
    with live(project, "row by row") as run:
        for number in range(len(rows)):
            run.log_history(rows[: number + 1])
    assert series(project, "at once, seed 0") == series(project, "row by row, seed 0")
    first = {round(row["train_flops"] / 1e9): row["heldout_loss"] for row in reversed(rows)}
    assert dict(series(project, "at once, seed 0")["heldout_loss_by_gflops"]) == first
    assert len(first) < len(rows)


def test_an_equal_run_is_the_same_run(project: Path) -> None:
    for _ in range(2):
        with live(project, "twice") as run:
            run.log_history(TRAINING)
            run.log_machine(MACHINE)
    assert series(project, "twice, seed 0") == WHOLE_TRAINING | MACHINE_METRICS


def test_another_identity_is_another_run(project: Path) -> None:
    for identity in ("first", "second"):
        with live(project, "again", identity=identity, params={"seed": 0, "lr": identity}):
            pass
    found = runs(project, "tags.`mlflow.runName` = 'again, seed 0'")
    assert {run.data.params["lr"] for run in found} == {"first", "second"}


def test_a_changed_parameter_under_the_same_identity_stops_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with live(project, "changed", params={"seed": 0, "lr": 1}):
        pass
    with live(project, "changed", params={"seed": 0, "lr": 2, "new": 3}) as run:
        run.log_history(TRAINING)
    assert run_of(project, "changed, seed 0").data.params == {"seed": "0", "lr": "1", "new": "3"}
    assert series(project, "changed, seed 0") == WHOLE_TRAINING
    assert not capsys.readouterr().err


# --- failures -----------------------------------------------------------------------------------------------


def test_an_unreachable_server_is_mentioned_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with live(tmp_path, "offline") as run:
        for rows in range(40):
            run.log_history(TRAINING[:rows])
        run.log_machine(MACHINE)
        run.log_artifact(tmp_path / "grid.png")
    printed = capfd.readouterr()
    [warning] = (printed.out + printed.err).strip().splitlines()
    assert "http://127.0.0.1:9: " in warning
    assert "refused" in warning
    assert "maskdm sync" in warning
    assert "secret" not in warning


def test_what_training_raises_is_not_hidden_by_an_unreachable_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    with pytest.raises(ValueError, match="NaN loss"), live(tmp_path, "offline"):
        raise ValueError("NaN loss")


def test_a_store_that_is_no_store_stops_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mlflow.db").write_text("not a database")
    with live(tmp_path, "broken") as run:
        run.log_history(TRAINING)
    [warning] = capfd.readouterr().err.strip().splitlines()
    assert "not a database" in warning


def test_a_deleted_experiment_is_one_line_that_says_how_it_comes_back(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with live(project, "clutter"):
        pass
    shutil.copy(project / "mlflow.db", tmp_path)
    client(tmp_path).delete_experiment("1")
    with live(tmp_path, "afresh") as run:
        run.log_history(TRAINING)
    warning = capfd.readouterr().err.splitlines()[-1]
    assert "`mlflow experiments restore -x 1` brings it back" in warning
    client(tmp_path).restore_experiment("1")
    with live(tmp_path, "afresh") as run:
        run.log_history(TRAINING)
    assert series(tmp_path, "afresh, seed 0") == WHOLE_TRAINING


def test_a_run_that_was_deleted_is_made_again(project: Path) -> None:
    with live(project, "deleted") as run:
        run.log_history(TRAINING[:10])
    client(project).delete_run(run_of(project, "deleted, seed 0").info.run_id)
    with live(project, "deleted") as run:
        run.log_history(TRAINING)
    assert series(project, "deleted, seed 0") == WHOLE_TRAINING


def test_a_store_of_another_version_of_mlflow_says_what_to_do(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with live(project, "version"):
        pass
    shutil.copy(project / "mlflow.db", tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'cc1f77228345'")
    with live(tmp_path, "version"):
        pass
    [warning] = capfd.readouterr().err.strip().splitlines()
    assert "found version cc1f77228345" in warning
    assert "mlflow db upgrade" in warning
    assert "delete it, and `maskdm sync` makes it again" in warning


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("htp://server", "unsupported URI 'htp://server'"),
        ("./mlruns", "mlflow migrate-filestore"),
        ("postgresql+psycopg://me:secret@127.0.0.1:9/mlflow", "Connection refused"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], uri: str, said: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    with live(tmp_path, "unusable") as run:
        run.log_history(TRAINING)
    assert time.monotonic() - began < 60, "MLflow alone tries to reach a database for 100 seconds"
    [warning] = capfd.readouterr().err.strip().splitlines()
    assert said in warning
    assert "secret" not in warning


def test_values_that_mlflow_has_no_place_for_stop_nothing(project: Path) -> None:
    params = PARAMS | {"arm": "long", "data.classes": ",".join(f"n{number:06d}" for number in range(2000))}
    rows = [TRAINING[0], TRAINING[1] | {"loss": float("nan"), "heldout_loss": float("inf")}, TRAINING[2]]
    with live(project, "long", params=params) as run:
        run.log_history(rows)
    assert run_of(project, "long, seed 0").data.params["data.classes"].startswith("n000000,n000001,")
    assert [step for step, _ in series(project, "long, seed 0")["loss"]] == [640, 1280, 1920]


def test_a_run_goes_on_as_soon_as_the_store_is_back(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlflow_store, "REST_SECONDS", 0.0)
    monkeypatch.setattr(mlflow_store, "REST_FACTOR", 0.0)
    log_batch = MlflowClient.log_batch

    def half_of_it(self: MlflowClient, run_id: str, metrics: list[Any], **options: Any) -> None:
        log_batch(self, run_id, metrics[: len(metrics) // 2])
        raise OSError("server restarted")

    with live(project, "back") as run:
        for outage in (10, 20):
            run.log_history(TRAINING[:outage])
            with monkeypatch.context() as away:
                away.setattr(MlflowClient, "log_batch", half_of_it)
                for rows in (4, 8):
                    run.log_history(TRAINING[: outage + rows])
        run.log_history(TRAINING)
    assert series(project, "back, seed 0") == WHOLE_TRAINING
    assert run_of(project, "back, seed 0").info.status == "FINISHED"
    assert capfd.readouterr().err.count("server restarted") == 2, "once an outage"


def test_a_store_that_fails_is_left_alone_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def away(self: mlflow_store.Store, root: Path) -> None:
        asked.append(root)
        raise OSError("away")

    monkeypatch.setattr(mlflow_store.Store, "__init__", away)
    with live(tmp_path, "patient") as run:
        for rows in range(40):
            run.log_history(TRAINING[:rows])
    assert len(asked) == 1


def test_runs_that_machines_made_of_one_arm_at_the_same_moment_become_one(project: Path) -> None:
    for seed in (0, 1):
        store, subject = mlflow_store.Store(project), Subject(trial("merged", seed), {}, {})
        parent = store._new_parent(subject, 1000 + seed)
        store._parent_ids[subject.parent["maskdm.run_id"]] = parent.info.run_id  # it did not see the other's
        store.run(subject, 1000)
    with live(project, "merged", seed=2):
        pass
    arm = run_of(project, "merged")
    assert arm.info.start_time == 1000, "the first stays"
    assert len(runs(project, f"tags.`mlflow.parentRunId` = '{arm.info.run_id}'")) == 3


THREE_AT_ONCE = """
import sys
sys.path[:0] = [sys.argv[2]]
from pathlib import Path
from test_mlflow_store import TRAINING, live

with live(Path(sys.argv[1]), "crowd", seed=int(sys.argv[3])) as run:
    run.log_history(TRAINING)
"""


NAMES = (
    "my%20project", "who?", "with space", "#1", "ü&=;+@:", "100%", "%%", "quote'\"", "back\\slash", "new\nline", "*[x]",
    "~", "$HOME",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_projects_folder_may_have_any_name(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str], project: Path
) -> None:
    root = tmp_path / name
    root.mkdir()
    mlflow_store.Store(project)
    shutil.copy(project / "mlflow.db", root)  # making the tables takes seconds: the next test does it
    with live(root, "named") as run:
        run.log_history(TRAINING[:1])
    assert capfd.readouterr().err == ""
    assert series(root, "named, seed 0")["loss"] == [(640, 1.0)]
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing lands beside the project"


def test_the_tables_are_made_in_a_folder_of_any_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "".join(NAMES[:2])
    root.mkdir()
    with live(root, "named"):
        pass
    assert capfd.readouterr().err == ""
    assert (root / "mlflow.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


@pytest.mark.parametrize("given", ["sqlite:///~/runs.db", "sqlite:///$ELSEWHERE/runs.db", "  "])
def test_home_and_variables_in_the_users_store_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ELSEWHERE", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    wanted = "runs.db" if given.strip() else "mlflow.db"
    assert sqlite_path(mlflow_store.store_uri(tmp_path)) == tmp_path / wanted
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///$NOWHERE/runs.db")
    with pytest.raises(MaskDMError, match=r"MLFLOW_TRACKING_URI=.* NOWHERE is not set"):
        mlflow_store.store_uri(tmp_path)


def test_a_damaged_store_is_one_line_at_once_that_says_what_to_do(
    tmp_path: Path, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"torn" * 1000)
    with live(tmp_path, "torn"):
        pass
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "file is not a database; delete it, and `maskdm sync` makes it again" in said


def test_processes_that_start_at_once_share_one_store(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db.new").write_text("left by a kill while the first store was made")
    seeds = ("1", "2", "3")
    arguments = [sys.executable, "-c", THREE_AT_ONCE, str(tmp_path), str(Path(__file__).parent)]
    processes = [subprocess.Popen([*arguments, seed], stderr=subprocess.PIPE, text=True) for seed in seeds]
    assert [process.communicate()[1] for process in processes] == ["", "", ""]
    assert [process.returncode for process in processes] == [0, 0, 0]
    arm = run_of(tmp_path, "crowd")
    for seed in seeds:
        assert run_of(tmp_path, f"crowd, seed {seed}").data.tags["mlflow.parentRunId"] == arm.info.run_id
        assert series(tmp_path, f"crowd, seed {seed}") == WHOLE_TRAINING


# --- the runs of arms ---------------------------------------------------------------------------------------


def write(root: Path, *records: Record) -> None:
    for record in records:
        write_record(root, record, MACHINE)


def everything(project: Path) -> list[tuple[str, dict[str, Any]]]:
    """All runs with their metrics, tags and parameters."""
    found = runs(project, "tags.`maskdm.run_id` LIKE '%'")
    return [(run.info.run_id, run.to_dictionary()["data"]) for run in found]


def test_the_run_of_an_arm_holds_the_means_of_its_trials(clone: Path, project: Path) -> None:
    arm = clone.name
    write(clone, measured(arm, 0), measured(arm, 1, factor=3.0))
    mlflow_store.summarise(clone, "default")
    found = run_of(project, arm)
    assert found.data.metrics["seeds"] == 2
    assert found.data.metrics["fd_effnet_lite0"] == pytest.approx(20.0)  # of 10 and 30
    assert found.data.metrics["fd_effnet_lite0_sd"] == pytest.approx(2**0.5 * 10)
    assert found.data.metrics["heldout_loss"] == pytest.approx(2 * 1.5 / 40)
    assert (found.data.metrics["recall"], found.data.metrics["images_seen"]) == (0.25, 25600)
    assert (found.data.metrics["density"], found.data.metrics["coverage"]) == (0.75, 0.125)
    curve = {step: 2 * value for step, value in WHOLE_TRIAL["heldout_loss_by_gflops"]}
    assert dict(series(project, arm)["heldout_loss_by_gflops"]) == pytest.approx(curve)
    assert "loss" not in found.data.metrics
    assert found.data.params == {name: str(value) for name, value in PARAMS.items() if name != "seed"} | {"arm": arm}
    assert data_set(found)[0] == "digits"


def test_a_measure_that_a_trial_lacks_has_no_mean(clone: Path, project: Path) -> None:
    old = measured(clone.name, 1)
    history = [{name: value for name, value in row.items() if name != "density"} for row in old.history]
    write(clone, measured(clone.name, 0), replace(old, history=history))
    mlflow_store.summarise(clone, "default")
    found = run_of(project, clone.name).data.metrics
    assert found["seeds"] == 2
    assert "density" not in found
    assert found["coverage"] == 0.125


def test_to_summarise_again_changes_nothing(clone: Path, project: Path) -> None:
    mlflow_store.sync(clone)
    before = everything(project)
    mlflow_store.summarise(clone, "default")
    mlflow_store.sync(clone)
    assert everything(project) == before


def test_another_seed_gives_new_means_and_keeps_the_trials_together(clone: Path, project: Path) -> None:
    mlflow_store.sync(clone)
    write(clone, measured(clone.name, 2, factor=4.0))
    mlflow_store.sync(clone)
    arm = run_of(project, clone.name)  # just one
    assert arm.data.metrics["seeds"] == 3
    assert arm.data.metrics["fd_effnet_lite0"] == pytest.approx(20.0)
    assert len(runs(project, f"tags.`mlflow.parentRunId` = '{arm.info.run_id}'")) == 3


def test_the_run_of_a_search_holds_its_best_trial(clone: Path, project: Path) -> None:
    shutil.rmtree(clone / "records")
    for number, factor in enumerate((2.0, 1.0, 3.0)):
        record = measured("trial", factor=factor, stage="search", key=f"trials/{number:04d}", identity=f"{number}")
        write(clone, replace(record, data=DATA | {"sha256": clone.name}, params={"seed": 0, "lr": number}))
    mlflow_store.summarise(clone, "search")
    [best] = runs(project, f"tags.`maskdm.role` = 'search' and tags.`maskdm.data_hash` = '{clone.name[:16]}'")
    assert best.data.metrics["heldout_loss"] == pytest.approx(1.5 / 40)
    assert (best.data.metrics["trials"], best.data.params["lr"]) == (3, "1")


def test_a_grid_of_samples_is_on_the_pages_of_arm_and_trial(clone: Path, project: Path) -> None:
    grid = clone / "runs" / "evaluate" / clone.name / "0" / "grid.png"
    grid.parent.mkdir(parents=True)
    grid.write_bytes(b"pixels")
    mlflow_store.sync(clone)
    for name in (clone.name, f"{clone.name}, seed 0"):
        assert "grid.png" in {file.path for file in client(project).list_artifacts(run_of(project, name).info.run_id)}


def test_a_report_is_one_run_however_often_it_is_written(clone: Path, project: Path) -> None:
    page = clone / "report.md"
    for text in ("first", "second"):
        page.write_text(text)
        mlflow_store.log_report(clone, [page])
    run = run_of(project, "report")
    [file] = client(project).list_artifacts(run.info.run_id)
    assert file.path == "report.md"
    [copy] = (project / "mlartifacts").rglob("report.md")
    assert copy.read_text() == "second"
    assert run.data.tags["maskdm.comparison"] == "default", "it stands beside the arms"


def test_sync_brings_the_page_once(clone: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = clone / INDEX
    page.parent.mkdir()
    page.write_text("<title>answer</title>")
    mlflow_store.sync(clone)
    run = run_of(project, "report").info.run_id
    assert "index.html" in {file.path for file in client(project).list_artifacts(run)}
    monkeypatch.setattr(MlflowClient, "log_artifact", lambda *_: pytest.fail("again"))
    mlflow_store.sync(clone)


def test_summaries_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    write(tmp_path, measured("offline"))
    mlflow_store.summarise(tmp_path, "default")
    mlflow_store.log_report(tmp_path, [])
    assert capfd.readouterr().err.count("warning: tracking failed") == 2


def test_the_experiment_explains_itself_and_has_a_view(project: Path) -> None:
    mlflow_store.Store(project)
    experiment = client(project).get_experiment_by_name("maskdm")
    assert experiment
    assert "means over the seeds" in experiment.tags["mlflow.note.content"]
    view = json.loads(experiment.tags["mlflow.sharedViewState.arms"])
    assert view["name"] == "Arms"
    columns = json.loads(view["state"])["selectedColumns"]
    assert {f"metrics.`{name}`" for name in ("heldout_loss", *OF_SAMPLES)} <= set(columns)


# --- sync ---------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another project, with records of two trials of an arm named like its folder; it tracks into the shared store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    for seed in (0, 1):
        write_record(tmp_path, measured(tmp_path.name, seed), MACHINE)
    return tmp_path


def test_sync_rebuilds_the_runs_from_the_records_and_then_has_nothing_to_do(clone: Path, project: Path) -> None:
    assert mlflow_store.sync(clone) == 2
    assert mlflow_store.sync(clone) == 0
    assert series(project, f"{clone.name}, seed 1") == WHOLE_TRIAL | MACHINE_METRICS

    run = run_of(project, f"{clone.name}, seed 0")
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.tags["hardware.cores"] == "2"
    assert run.data.tags["mlflow.parentRunId"] == run_of(project, clone.name).info.run_id
    assert data_set(run) == ("digits", "d" * 32 + ".dir")
    assert run.info.status == "FINISHED"
    assert [file.path for file in client(project).list_artifacts(run.info.run_id)] == [f"{clone.name}-0.json"]


def test_a_synced_run_keeps_the_time_it_took(clone: Path, project: Path) -> None:
    mlflow_store.sync(clone)
    began = 1767323045000  # 2026-01-02T03:04:05 UTC in milliseconds
    for name in (f"{clone.name}, seed 0", clone.name):
        run = run_of(project, name)
        assert (run.info.start_time - began, run.info.end_time - began) == (0, 20000)
    measured = client(project).get_metric_history(run_of(project, f"{clone.name}, seed 0").info.run_id, "loss")
    assert sorted(metric.timestamp - began for metric in measured) == [500 * n for n in range(1, 41)]


def test_sync_adds_nothing_to_a_run_that_was_tracked(clone: Path, project: Path) -> None:
    for seed in (0, 1):
        with live(clone, clone.name, seed=seed) as run:
            run.log_history([*TRAINING, *EVALUATION])
            run.log_machine(MACHINE)
    assert mlflow_store.sync(clone) == 0


def test_sync_does_a_record_again_that_has_changed(clone: Path, project: Path) -> None:
    mlflow_store.sync(clone)
    write_record(clone, measured(clone.name, 1, identity="other", factor=2.0), MACHINE)
    assert mlflow_store.sync(clone) == 1


def test_sync_completes_a_run_whose_store_failed_on_the_way(
    clone: Path, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as failing, live(clone, clone.name) as run:
        run.log_history(TRAINING[:10])
        log_batch = MlflowClient.log_batch

        def half_of_it(self: MlflowClient, run_id: str, metrics: list[Any], **kwargs: Any) -> None:
            log_batch(self, run_id, metrics[: len(metrics) // 2])
            raise OSError("disk I/O error")

        failing.setattr(MlflowClient, "log_batch", half_of_it)
        run.log_history(TRAINING[:30])
        run.log_history(TRAINING)
    [warning] = capfd.readouterr().err.strip().splitlines()
    assert "disk I/O error" in warning

    assert mlflow_store.sync(clone) == 2
    assert series(project, f"{clone.name}, seed 0") == WHOLE_TRIAL | MACHINE_METRICS
    assert run_of(project, f"{clone.name}, seed 0").info.status == "FINISHED"


def test_sync_needs_no_machine_dependent_record(clone: Path, project: Path) -> None:
    for path in clone.rglob("*.machine.json"):
        path.unlink()
    assert mlflow_store.sync(clone) == 2
    assert mlflow_store.sync(clone) == 0
    assert series(project, f"{clone.name}, seed 0") == WHOLE_TRIAL


def test_an_unreachable_server_is_an_error_of_sync_in_one_line(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    with pytest.raises(MaskDMError, match=UNREACHABLE) as caught:
        mlflow_store.sync(clone)
    assert "\n" not in str(caught.value)
