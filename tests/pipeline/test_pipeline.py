"""The whole pipeline: what its stages depend on, `dvc repro` at toy scale, and what users of DVC ask for."""

import io
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML

from maskdm.tracking.records import read_records
from tests.conftest import PARAMS
from tests.imports import PROJECT, closure, room
from tests.kills import Activity, Repro, differences, draw_points, facts, kill_at, make_project
from tests.workspace import command, write_params

TO_TARGET = ("compute_to_target", "compute_to_target_low", "compute_to_target_high")
# They run, show and keep what the others compute.
NOT_LISTED = frozenset({"maskdm/engine", "maskdm/runtime", "maskdm/tracking"})


def dvc_stages() -> dict[str, dict[str, Any]]:
    """Every stage, by `<file>:<name>`, as `dvc repro` takes it."""
    files = {
        name: YAML(typ="safe", pure=True).load(PROJECT / name)["stages"] for name in ("dvc.yaml", "study/dvc.yaml")
    }
    return {f"{name}:{key}": stage.get("do", stage) for name, stages in files.items() for key, stage in stages.items()}


@pytest.mark.parametrize("name", dvc_stages())
def test_a_stage_depends_on_exactly_the_rooms_that_decide_its_result(name: str) -> None:
    listed = {dep for dep in dvc_stages()[name]["deps"] if dep.startswith(("maskdm", "pipeline"))}
    module = dvc_stages()[name]["cmd"].removeprefix("python -m pipeline.").split()[0]
    reads_records = name.endswith(("report", ":page"))
    not_listed = NOT_LISTED - {"maskdm/tracking"} if reads_records else NOT_LISTED
    assert listed == {room(path) for path in closure(PROJECT / "pipeline" / f"{module}.py")} - not_listed


# --- the whole pipeline -------------------------------------------------------------------------------------


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
    assert len(stages_run(repro.output)) == 14
    assert "warning" not in repro.output
    return FirstRun(folder, activities, facts(folder, "staged"))


@pytest.fixture(scope="module")
def project(first_run: FirstRun) -> Path:
    """A project in which `dvc repro` has run once."""
    return first_run.folder


@pytest.mark.slow
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


def test_what_says_which_stages_have_run_is_removed_if_it_is_torn_and_only_then(tmp_path: Path) -> None:
    whole = (PROJECT / "dvc.lock").read_text()
    torn = whole[: whole.rindex("    outs:") + len("    ou")]
    for content, kept in (("", False), (torn, False), (whole, True)):
        (tmp_path / "dvc.lock").write_text(content)
        subprocess.run(["make", "--silent", "-f", PROJECT / "Makefile", "unlock"], cwd=tmp_path, check=True)
        assert (tmp_path / "dvc.lock").exists() == kept


def test_torn_files_are_removed_by_the_makefile_of_a_folder_with_spaces(tmp_path: Path) -> None:
    home, copy = tmp_path / "my own suite", tmp_path / "a copy"
    for folder in (home / "pipeline", copy):
        folder.mkdir(parents=True)
    shutil.copy(PROJECT / "Makefile", home)
    shutil.copy(PROJECT / "pipeline" / "unlock.py", home / "pipeline")
    (copy / "dvc.lock").write_text("")
    subprocess.run(["make", "--silent", "-f", home / "Makefile", "unlock"], cwd=copy, check=True)
    assert not (copy / "dvc.lock").exists()


def test_dvc_repro_makes_report_records_and_runs(project: Path) -> None:
    report = (project / "reports" / "report.md").read_text()
    assert re.search(r"^\*\*.*`staged`.*\*\*$", report, re.M)
    page = (project / "reports" / "index.html").read_text()
    shown = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)[0])["samples"]
    places = [str(share) for share in PARAMS["budget"]["snapshots"]]
    assert list(shown["grids"]["staged"][str(PARAMS["seeds"][0])]) == places, "a grid of every snapshot"
    files = {str(path.relative_to(project / "records")) for path in (project / "records").rglob("*.json*")}
    assert {"reference.json", "step_time.json", "default/scratch.jsonl", "default/staged.jsonl"} <= files
    keys = {record.key for record, _ in read_records(project, ("default",))}
    assert keys == {f"{arm}/{seed}" for arm in ("scratch", "staged") for seed in PARAMS["seeds"]}
    assert "0 runs added or completed" in command(project, "maskdm", "sync")
    registered = MlflowClient(f"sqlite:///{project / 'mlflow.db'}").search_registered_models()
    aliases = {f"seed{seed}" for seed in PARAMS["seeds"]}
    assert {model.name: set(model.aliases) for model in registered} == {
        "digits-scratch": aliases,
        "digits-staged": aliases,
    }


def test_all_trials_spent_the_same_compute(project: Path) -> None:
    spent = [record.summary["train_flops"] for record, _ in read_records(project, ("default",))]
    assert spent == pytest.approx([spent[0]] * len(spent), rel=0.01)


def test_a_second_repro_does_nothing(project: Path) -> None:
    assert stages_run(command(project, "dvc", "repro")) == []


def changed_stages(folder: Path) -> list[str]:
    """Those that `dvc repro` would run first: what they depend on has changed."""
    return sorted(json.loads(command(folder, "dvc", "status", "--json", "dvc.yaml")))


def test_an_edit_of_the_report_retrains_nothing(project: Path) -> None:
    path = project / "maskdm" / "reporting" / "figures.py"
    before = path.read_text()
    path.write_text(before + "\n# an edit\n")
    assert changed_stages(project) == ["page", "report", "search_report"]
    path.write_text(before)
    assert changed_stages(project) == []


def with_another_crop() -> dict[str, Any]:
    arms: dict[str, Any] = json.loads(json.dumps(PARAMS["arms"]))
    arms["staged"][1]["mask"]["crop"] = 2
    return arms


OF_THE_ARM = [f"{name}@staged" for name in ("pretrain", "finetune", "evaluate")]
OF_ALL_ARMS = ["masks", "page", "report", "step_time"]


def test_a_changed_arm_is_to_be_run_again_and_no_other(project: Path) -> None:
    write_params(project, arms=with_another_crop())
    assert changed_stages(project) == sorted([*OF_THE_ARM, *OF_ALL_ARMS])
    write_params(project)
    assert changed_stages(project) == []


@pytest.mark.slow
def test_a_changed_arm_is_run_again_and_no_other(project: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(project, tmp_path / "project")
    before = (folder / "records" / "default" / "scratch.jsonl").read_bytes()
    write_params(folder, arms=with_another_crop())
    assert stages_run(command(folder, "dvc", "repro", OF_THE_ARM[-1])) == OF_THE_ARM
    assert changed_stages(folder) == OF_ALL_ARMS
    assert (folder / "records" / "default" / "scratch.jsonl").read_bytes() == before


@pytest.mark.slow
def test_another_seed_trains_no_other(project: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(project, tmp_path / "project")
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*/scratch/**/*.safetensors")}
    write_params(folder, seeds=[*PARAMS["seeds"], 7])
    ran = stages_run(command(folder, "dvc", "repro", "evaluate@scratch"))
    assert ran == ["pretrain@scratch", "finetune@scratch", "evaluate@scratch"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    of_scratch = {record.params["seed"] for record, _ in read_records(folder, ("default",)) if record.arm == "scratch"}
    assert of_scratch == {*PARAMS["seeds"], 7}


# --- what users of DVC ask for ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with what it has made, in a git repository."""
    folder = tmp_path_factory.mktemp("repository") / "project"
    shutil.copytree(project, folder)
    shutil.copy(PROJECT / ".gitignore", folder)
    command(folder, "dvc", "config", "core.no_scm", "--unset")
    command(folder, "git", "init", "--quiet")
    commit(folder, "first")
    return folder


def commit(folder: Path, message: str) -> None:
    command(folder, "git", "add", "--all")
    author = ("-c", "user.name=Tests", "-c", "user.email=tests@example.org")
    command(folder, "git", *author, "commit", "--quiet", "--message", message)


def metrics(said: str) -> dict[str, Any]:
    """Of each arm in DVC's JSON, by the name of its file."""
    files: dict[str, Any] = json.loads(said)
    return {Path(path).stem: row for path, row in files.items()}


def test_metrics_are_a_row_an_arm_from_any_folder(repository: Path) -> None:
    for folder in (repository, repository / "maskdm"):
        shown = json.loads(command(folder, "dvc", "metrics", "show", "--json"))
        arms = metrics(json.dumps(shown[""]["data"]))
        assert arms.keys() == {"scratch", "staged"}
        columns = {*("heldout_loss", "fd_effnet_lite0", "density", "coverage", "train_seconds"), *TO_TARGET}
        assert arms["scratch"]["data"].keys() == columns
        assert columns - set(TO_TARGET) <= arms["staged"]["data"].keys() <= columns  # it may never reach the target
    lines = command(repository, "dvc", "metrics", "show").splitlines()
    assert max(map(len, lines)) < 190


def test_plots_show_the_curves_of_all_arms_in_one(repository: Path) -> None:
    page = Path(command(repository, "dvc", "plots", "show").strip().removeprefix("file://")).read_text()
    assert page.count("vegaEmbed('#") == 1
    assert all(f'"arm": "{arm}"' in page for arm in ("scratch", "staged"))
    assert page.count("<img") == 2


@pytest.mark.slow
def test_an_experiment_changes_one_setting_and_is_compared(repository: Path) -> None:
    ran = stages_run(command(repository, "dvc", "exp", "run", "-S", "arms.staged.0.share=0.3"))
    assert "finetune@staged" in ran
    assert not any(name.endswith("@scratch") for name in ran)
    diff = metrics(command(repository, "dvc", "metrics", "diff", "--json"))
    assert diff.get("scratch", {}).keys() <= {"train_seconds"}  # steps were timed again
    assert diff["staged"]["heldout_loss"]["old"] != diff["staged"]["heldout_loss"]["new"]
    page = Path(command(repository, "dvc", "plots", "diff").strip().removeprefix("file://")).read_text()
    assert '"rev": "HEAD"' in page
    assert '"rev": "workspace"' in page
    table = pd.read_csv(io.StringIO(command(repository, "dvc", "exp", "show", "--csv")))
    column = next(name for name in table.columns.astype(str) if name.endswith("staged.json:heldout_loss"))
    assert table[column].notna().sum() >= 2
    assert table[column].nunique() == 2
