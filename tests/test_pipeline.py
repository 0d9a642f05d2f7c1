"""The stages through their real entry points: DVC's lists, `dvc repro` at toy scale, kills, and bad input."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline import evaluate, training, trial
from tests.conftest import PARAMS
from tests.imports import PROJECT, closure
from tests.kills import Activity, Repro, differences, draw_points, facts, kill_at, make_project
from tests.toy import ENVIRONMENT, write_params
from tests.workspace import make_workspace

# They show and keep what was computed; bfloat16 makes up for what a CPU lacks.
SHOWN_ONLY = frozenset({"errors", "progress", "records", "tracking", "bfloat16"})


def dvc_stages() -> dict[str, dict[str, Any]]:
    files = (PROJECT / "dvc.yaml", PROJECT / "study" / "dvc.yaml")
    stages = [YAML(typ="safe", pure=True).load(file)["stages"].items() for file in files]
    return {name: stage.get("do", stage) for items in stages for name, stage in items}


@pytest.mark.parametrize("name", dvc_stages())
def test_a_stage_depends_on_exactly_the_code_that_decides_its_result(name: str) -> None:
    listed = {dep for dep in dvc_stages()[name]["deps"] if dep.startswith(("maskdm", "pipeline"))}
    if "maskdm/datasets" in listed:
        listed |= {str(p.relative_to(PROJECT)) for p in (PROJECT / "maskdm" / "datasets").glob("[!_]*.py")}
        listed.remove("maskdm/datasets")
    shown = SHOWN_ONLY - {"records"} if name.endswith("report") else SHOWN_ONLY  # reports read the records
    module = dvc_stages()[name]["cmd"].removeprefix("python -m pipeline.").removeprefix("launch ").split()[0]
    imported = closure(PROJECT / "pipeline" / f"{module}.py", without=shown)
    assert listed == {str(path.relative_to(PROJECT)) for path in imported}


@pytest.mark.parametrize(("name", "code"), [("finetune", training.CODE), ("evaluate", evaluate.CODE)])
def test_a_runs_identity_covers_the_library_files_that_dvc_lists(name: str, code: tuple[str, ...]) -> None:
    listed = {dep for dep in dvc_stages()[name]["deps"] if dep.startswith("maskdm/")}
    assert {f"maskdm/{module}.py" for module in code} == listed


def test_a_trials_identity_covers_what_trains_and_what_judges() -> None:
    listed = {dep for dep in dvc_stages()["part"]["deps"] if dep.startswith("maskdm/")}
    names_and_tables = {f"maskdm/{module}.py" for module in ("analysis", "study", "units")}
    assert {f"maskdm/{module}.py" for module in trial.CODE} == listed - names_and_tables


# --- the whole pipeline -------------------------------------------------------------------------------------


def command(folder: Path, *arguments: str, expect: int = 0, **environment: str) -> str:
    """Run a command in `folder`; returns what it printed."""
    done = subprocess.run(
        arguments,
        cwd=folder,
        env=ENVIRONMENT | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert done.returncode == expect, done.stdout
    return done.stdout


def stage(folder: Path, name: str, *arguments: str, expect: int = 0, **environment: str) -> str:
    return command(folder, sys.executable, "-m", f"pipeline.{name}", *arguments, expect=expect, **environment)


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '(.*)'", output)


@dataclass(frozen=True)
class FirstRun:
    """Of `dvc repro`, in a project where nothing had run."""

    folder: Path
    activities: list[Activity]
    facts: dict[str, Any]  # of the arm `staged`


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    repro = Repro(folder)
    activities = list(repro.activities())
    assert len(stages_run(repro.output)) == 13
    assert "warning" not in repro.output
    return FirstRun(folder, activities, facts(folder, "staged"))


@pytest.fixture(scope="module")
def project(first_run: FirstRun) -> Path:
    """A project in which `dvc repro` has run once."""
    return first_run.folder


def test_a_repro_that_is_killed_again_and_again_ends_as_one_that_is_not(first_run: FirstRun, tmp_path: Path) -> None:
    """At three points; `python -m tests.kills` takes more."""
    make_project(tmp_path)
    for point in draw_points(first_run.activities, 3, seed=0, only="@staged"):
        kill_at(tmp_path, point, first_run.activities, target="evaluate@staged")
    list(Repro(tmp_path, "evaluate@staged").activities())
    assert differences(facts(tmp_path, "staged"), first_run.facts) == []


def test_a_lock_file_of_dvc_is_removed_if_it_is_torn_and_only_then(tmp_path: Path) -> None:
    lock = tmp_path / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(parents=True)
    for content, kept in ((None, False), ("", False), ('{"read": {', False), ('{"read": {}}', True)):
        if content is not None:
            lock.write_text(content)
        subprocess.run(["make", "--silent", "-f", PROJECT / "Makefile", "unlock"], cwd=tmp_path, check=True)
        assert lock.exists() == kept


def test_dvc_repro_makes_report_records_and_runs(project: Path) -> None:
    report = (project / "reports" / "report.md").read_text()
    assert "## Answer" in report
    records = {str(p.relative_to(project / "records")) for p in (project / "records").rglob("*.json")}
    of_stages = {"pretrain/none.json", "finetune/staged.json", "evaluate/scratch.machine.json"}
    assert {"reference.json", "step_time.json"} | of_stages <= records
    assert "0 runs added or completed" in command(project, "maskdm", "sync")


def test_both_arms_spent_the_same_compute(project: Path) -> None:
    spent = [
        json.loads((project / "records" / "finetune" / f"{arm}.json").read_text())["summary"]["train_flops"]
        for arm in ("scratch", "staged")
    ]
    assert spent[0] == pytest.approx(spent[1], rel=0.01)


def test_a_second_repro_does_nothing(project: Path) -> None:
    assert stages_run(command(project, "dvc", "repro")) == []


def test_an_edit_of_the_report_retrains_nothing(project: Path) -> None:
    path = project / "maskdm" / "figures.py"
    path.write_text(path.read_text() + "\n# an edit\n")
    assert sorted(stages_run(command(project, "dvc", "repro"))) == ["report", "search_report"]


def test_a_changed_arm_is_run_again_and_no_other(project: Path) -> None:
    params = json.loads(json.dumps(PARAMS))
    params["pretrain"]["staged"][1]["mask"]["crop"] = 2
    before = (project / "records" / "finetune" / "scratch.json").read_bytes()
    write_params(project, pretrain=params["pretrain"])
    ran = stages_run(command(project, "dvc", "repro"))
    assert sorted(ran) == ["evaluate@staged", "finetune@staged", "masks", "pretrain@staged", "report", "step_time"]
    assert (project / "records" / "finetune" / "scratch.json").read_bytes() == before


# --- one stage at a time ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its data, and nothing trained."""
    folder = tmp_path_factory.mktemp("prepared")
    make_workspace(folder, "smoke")
    write_params(folder, budget={"train_flops": 5e9, "snapshots": [0.5, 1.0]})
    stage(folder, "prepare")
    return folder


def weights(folder: Path) -> bytes:
    (file,) = (folder / "runs" / "pretrain" / "staged" / "weights").glob("*.safetensors")
    return file.read_bytes()


def start_training(folder: Path) -> "subprocess.Popen[str]":
    """The stage pretrain@staged, under way and with a checkpoint saved; checkpoints are taken at every step."""
    code = (
        "import maskdm.training as t; t.PhaseTrainer.__init__.__defaults__ = (0.0, t.ALONE, print, None)\n"
        "import sys; sys.argv = ['pretrain', 'staged']\n"
        "from pipeline.pretrain import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not list((folder / "work").glob("*/*/phase1.pt")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_killed_stage_goes_on_with_the_same_command_to_the_same_weights(prepared: Path) -> None:
    killed = start_training(prepared)
    killed.kill()
    killed.communicate()
    assert not (prepared / "records" / "pretrain" / "staged.json").exists()
    stage(prepared, "pretrain", "staged")
    resumed, record = weights(prepared), (prepared / "records" / "pretrain" / "staged.json").read_bytes()
    assert not list((prepared / "work").glob("*/*"))

    interrupted = start_training(prepared)
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert re.search(r"interrupted: saved at step \d+ of \d+; the same command goes on", said)
    stage(prepared, "pretrain", "staged")
    assert weights(prepared) == resumed

    stage(prepared, "pretrain", "staged")  # without a break
    assert weights(prepared) == resumed
    assert (prepared / "records" / "pretrain" / "staged.json").read_bytes() == record


def test_a_fine_tuning_does_not_begin_anew_where_the_state_is_missing(prepared: Path) -> None:
    stage(prepared, "pretrain", "staged")
    state = prepared / "runs" / "pretrain" / "staged" / "state.pt"
    state.unlink()
    said = stage(prepared, "finetune", "staged", expect=2)
    assert said.strip().splitlines()[-1].startswith("error: runs/pretrain/staged/state.pt: no such file; `dvc repro")
    assert not (prepared / "runs" / "finetune" / "staged").exists()


def test_an_unreachable_tracking_server_does_not_stop_training(prepared: Path) -> None:
    server = "http://127.0.0.1:9"
    output = stage(prepared, "pretrain", "staged", MLFLOW_TRACKING_URI=server)
    assert output.count("warning: tracking stops") == 1
    assert "`maskdm sync` uploads them" in output
    store = f"sqlite:///{prepared / 'elsewhere.db'}"
    assert "1 runs added or completed" in command(prepared, "maskdm", "sync", MLFLOW_TRACKING_URI=store)
    refused = command(prepared, "maskdm", "sync", expect=2, MLFLOW_TRACKING_URI=server)
    assert refused.strip().splitlines()[-1].startswith(f"error: tracking store {server}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("pretrain", "stagged"), "error: stagged: allowed: one of none, staged"),
        (("finetune", "staged"), "error: runs/pretrain/staged/weights: no such folder"),
        (("evaluate", "scratch"), "error: runs/finetune/scratch/snapshots/0500: no such folder"),
        (("report",), "error: records/"),
    ],
)
def test_a_missing_input_is_one_line(tmp_path: Path, prepared: Path, arguments: tuple[str, ...], says: str) -> None:
    make_workspace(tmp_path, "smoke")
    write_params(tmp_path)
    stage(tmp_path, "prepare")
    assert stage(tmp_path, *arguments, expect=2).strip().splitlines()[-1].startswith(says)


def test_a_mistake_in_the_settings_stops_every_stage_with_one_line(tmp_path: Path) -> None:
    make_workspace(tmp_path, "smoke")
    write_params(tmp_path, sead=1)
    output = stage(tmp_path, "prepare", expect=2)
    assert output.strip() == "error: params.yaml: sead is not a known key; did you mean seed?"
    assert not (tmp_path / "data").exists()
