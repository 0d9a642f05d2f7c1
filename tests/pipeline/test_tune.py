"""Tuning through its real entry point, at toy scale."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from maskdm.tracking.records import read_records
from tests.conftest import MODELS, PARAMS
from tests.pipeline.test_study import DENSE, MASKED, write_blocks
from tests.workspace import ENVIRONMENT, make_prepared, refusal, stage

RATE = {"rate": {"first": 1.0, "low": 0.3, "high": 3.0, "log": True}}
SCHEDULE = {"recipe.optimisation.decay": {"first": 0.3, "choices": [0.1, 0.3, 0.9]}}
ARMS: dict[str, Any] = {
    "scratch": {"arm": [DENSE], "space": RATE | SCHEDULE},
    "patches": {"arm": [MASKED, DENSE], "space": RATE},
}


def write_tunings(folder: Path, trials: int) -> None:
    own = {"recipe": "adamw", "model": MODELS["uvit"] | {"embed_dim": 16}}
    tunings = {"seed": 9, "train_flops": 4e9, "trials": trials, "arms": ARMS} | own
    write_blocks(folder, {"parts": {}, "tunings": {"both": tunings}})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    make_prepared(folder)
    write_tunings(folder, trials=3)
    stage(folder, "tune", "both", "--workers", "2")
    return folder


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "reports" / "study" / "tuning_both.csv")


def test_every_arm_has_as_many_trials_of_equal_compute(project: Path) -> None:
    found = table(project)
    assert found.groupby("arm").size().to_dict() == {"scratch": 3, "patches": 3}
    assert found.loc[found["trial"] == 0, "rate"].tolist() == [1.0, 1.0]
    records = [record for record, _ in read_records(project, ("tuning",))]
    keys = [f"both/{arm}-0{number}" for arm in ("patches", "scratch") for number in range(3)]
    assert sorted(record.key for record in records) == keys
    for record in records:
        assert record.summary["train_flops"] == pytest.approx(4e9, rel=0.0025)
        row = found[(found["arm"] == record.arm) & (found["trial"] == int(record.key[-2:]))].iloc[0]
        assert row["heldout_loss"] == pytest.approx(record.summary["heldout_loss"])
        assert row["rate"] == record.params["tuning.rate"]
        assert (record.params["recipe"], record.params["model.embed_dim"]) == ("adamw", 16)


@pytest.mark.slow
def test_to_tune_again_trains_nothing_and_more_trials_go_on(project: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (project / "records" / "tuning").rglob("*.json*")}
    stage(project, "tune", "both", "--workers", "1")
    assert {path: path.read_bytes() for path in (project / "records" / "tuning").rglob("*.json*")} == before
    first = table(project)
    write_tunings(project, trials=4)
    stage(project, "tune", "both", "--workers", "2")
    more = table(project)
    pd.testing.assert_frame_equal(more[more["trial"] < 3].reset_index(drop=True), first)


@pytest.mark.slow
def test_an_arm_may_be_tuned_on_another_data_set(tmp_path: Path) -> None:
    make_prepared(tmp_path)
    data = PARAMS["data"] | {"holdout": 40, "classes": ["9"]}
    tuning = {"seed": 9, "train_flops": 4e9, "trials": 1, "set": "nines", "arms": {"scratch": ARMS["scratch"]}}
    write_blocks(tmp_path, {"sets": {"nines": {"data": data}}, "parts": {}, "set_tunings": {"nines": tuning}})
    error = refusal(tmp_path, "tune", "nines")
    assert error.endswith("prepared/own: no such folder; make it with `dvc repro study/dvc.yaml:set@nines`\n")
    stage(tmp_path, "prepare", "--set", "nines")
    stage(tmp_path, "tune", "nines")
    (record,) = [record for record, _ in read_records(tmp_path, ("tuning",))]
    assert record.data["train"] == 140  # 180 nines, of which 40 are held out


@pytest.mark.slow
def test_a_killed_tuning_ends_as_a_whole_one(project: Path, tmp_path: Path) -> None:
    make_prepared(tmp_path)
    write_tunings(tmp_path, trials=3)
    command = [sys.executable, "-m", "pipeline.tune", "both", "--workers", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "records").rglob("*-02.json")) and process.poll() is None:
        if len(list((tmp_path / "records").rglob("*-0?.json"))) >= 3:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.05)
    process.wait()
    stage(tmp_path, "tune", "both", "--workers", "2")
    whole = table(project)
    pd.testing.assert_frame_equal(table(tmp_path), whole[whole["trial"] < 3].reset_index(drop=True))
