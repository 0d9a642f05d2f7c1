"""The search through its real entry points, at toy scale: kills, workers, and bad input."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from ruamel.yaml import YAML

from maskdm.config.params import BUDGET_TOLERANCE, Params
from maskdm.config.reading import load_params, load_recipe, read_yaml
from maskdm.engine.searching import LARGE, show_dashboard
from maskdm.runtime.errors import MaskDMError
from maskdm.tracking.records import read_records
from maskdm.training.plan import plan_pretrain
from tests.conftest import PARAMS
from tests.imports import PROJECT
from tests.kills import tracked
from tests.servers import free_port
from tests.workspace import ENVIRONMENT, make_prepared, make_workspace, refusal, stage, write_params

MASKDM = [sys.executable, "-c", "from maskdm.cli import main; main()"]


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    """While the process runs, for five minutes at most."""
    deadline = time.monotonic() + 300
    while not holds():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def with_search(**changes: Any) -> dict[str, Any]:
    return {"search": PARAMS["search"] | changes}


def records_of(folder: Path) -> dict[str, Any]:
    return {record.key: (record, machine) for record, machine in read_records(folder, ("search",))}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    make_prepared(folder)
    return folder


@pytest.fixture(scope="module")
def searched(prepared: Path) -> Path:
    """A project whose search was killed after its first trial, and then ran to its end."""
    command = [sys.executable, "-m", "pipeline.search", "--workers", "2"]
    main = subprocess.Popen(command, cwd=prepared, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_until(lambda: any((prepared / "records").glob("search/trials/*.machine.json")), main)
    workers = psutil.Process(main.pid).children(recursive=True)
    main.send_signal(signal.SIGKILL)
    main.wait()
    assert not psutil.wait_procs(workers, timeout=30)[1], "workers end with their main process"
    stage(prepared, "search", "--workers", "2")
    return prepared


def test_a_killed_search_goes_on_and_ends_with_as_many_trials(searched: Path) -> None:
    trials = pd.read_csv(searched / "reports" / "search" / "trials.csv")
    assert len(trials) == PARAMS["search"]["trials"]
    assert trials["trial"].is_unique
    keys = set(records_of(searched))
    complete = trials[trials["state"] == "complete"]
    assert {f"trials/{number:04d}" for number in complete["trial"]} <= keys
    best = complete.sort_values("heldout_loss")["trial"].iloc[0]
    confirmed = {f"confirm/{name}-seed101" for name in (f"trial{best}", "paper", "scratch")}
    assert confirmed <= keys
    assert len(keys) == len(complete) + len(confirmed)
    assert not list((searched / "work" / "trials").glob("*/state"))


def test_all_trials_spent_the_same_compute(searched: Path) -> None:
    spent = [record.summary["train_flops"] for record, _ in read_records(searched, ("search",))]
    assert spent == pytest.approx([PARAMS["search"]["train_flops"]] * len(spent), rel=BUDGET_TOLERANCE / 2)


def test_every_trial_is_a_run_below_the_studys(searched: Path) -> None:
    found = tracked(searched)
    trials = pd.read_csv(searched / "reports" / "search" / "trials.csv")["trial"]
    for number in trials:
        status, parent, params = found[f"mlflow search: trial {number}: status, parent, params"]
        assert (status, parent) == ("FINISHED", "search: best trial")
        assert "search.mask" in dict(params)
    scratch = found["mlflow search: confirm scratch, seed 101: status, parent, params"]
    assert scratch[:2] == ("FINISHED", "search: confirm scratch")


def test_the_best_configuration_is_an_arm_of_the_pipeline(searched: Path) -> None:
    params, best = load_params(searched / "params.yaml"), read_yaml(searched / "reports" / "search" / "best.yaml")
    pasted = Params.model_validate(params.model_dump() | best | {"baseline": "searched"})
    plans = plan_pretrain(pasted, load_recipe(params.recipe, PROJECT), "searched")
    assert all(plan.mask and plan.steps for plan in plans)
    assert pasted.arms["searched"][-1] == params.search.finetune


def test_optunas_dashboard_shows_the_study_to_this_machine(searched: Path, tmp_path: Path) -> None:
    port, command = free_port(), [*MASKDM, "ui", "--search", "--port"]
    with (tmp_path / "said").open("wb") as said:
        served = subprocess.Popen([*command, str(port)], cwd=searched, env=ENVIRONMENT, stdout=said, stderr=said)
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/api/studies"), served)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies") as answer:
                [study] = json.load(answer)["study_summaries"]
            [page] = re.findall(r"The study: (\S+)", (tmp_path / "said").read_text())
            with urllib.request.urlopen(page) as answer:
                assert "<title>Optuna Dashboard</title>" in answer.read().decode()
            listening = {
                address.laddr.ip for address in psutil.Process(served.pid).net_connections() if not address.raddr
            }
            assert listening == {"127.0.0.1"}
            taken = subprocess.run([*command, str(port)], cwd=searched, env=ENVIRONMENT, capture_output=True, text=True)
        finally:
            served.kill()
            served.wait()
    assert study["study_name"].startswith("maskdm-")
    assert page.endswith(f"/{study['study_id']}")
    assert taken.returncode == 2
    assert taken.stderr.strip().splitlines()[-1].startswith(f"error: --port {port}: Address already in use")


def test_a_search_that_has_not_begun_has_no_dashboard(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_workspace(tmp_path, "smoke")
    (tmp_path / "data").symlink_to(prepared / "data")
    write_params(tmp_path)
    with (tmp_path / "study" / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(with_search(), file)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MaskDMError, match=r"study\.db: no such file; `dvc repro search` makes it"):
        show_dashboard(LARGE, free_port())
    assert not list(tmp_path.rglob("study.db"))


def answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=10):
        return True
    return False


def test_the_page_and_the_figures_are_made_without_the_study(searched: Path) -> None:
    stage(searched, "search_report")
    reports = searched / "reports" / "search"
    page = (reports / "search.md").read_text()
    assert "of 1 seeds" in page
    assert "One seed (101) an arm" in page
    assert "![trials](trials.png)" in page
    assert (reports / "trials.png").stat().st_size > 1000
    assert list(pd.read_csv(reports / "confirmation.csv")["arm"])[1:] == ["paper", "scratch"]


@pytest.mark.slow
def test_another_number_of_workers_tries_the_same_trials_though_the_first_search_was_killed(
    searched: Path, tmp_path: Path
) -> None:
    make_workspace(tmp_path, "smoke")
    (tmp_path / "data").symlink_to(searched / "data")
    write_params(tmp_path)
    stage(tmp_path, "search", "--workers", "1")
    for name in ("trials.csv", "curves.csv", "best.yaml"):
        tables = ((folder / "reports" / "search" / name).read_bytes() for folder in (searched, tmp_path))
        assert len(set(tables)) == 1, name


@pytest.mark.slow
def test_two_machines_without_a_common_folder_try_the_same_trials_though_one_is_lost(
    searched: Path, database: str, tmp_path: Path
) -> None:
    """Each has a project of its own; the one that joined is killed in the middle, and never comes back."""
    machines = [tmp_path / "leads", tmp_path / "joins"]
    for machine in machines:
        make_workspace(machine, "smoke")
        shutil.copytree(searched / "data", machine / "data")
        write_params(machine, **with_search(trials=6))
    environment = ENVIRONMENT | {"MASKDM_SEARCH_STORAGE": database}
    command = [*MASKDM, "search", "--workers", "1"]
    leads, joins = (
        subprocess.Popen([*command, *more], cwd=machine, env=environment, stderr=(machine / "said").open("w"))
        for machine, more in zip(machines, ([], ["--join"]), strict=True)
    )
    wait_until(lambda: any((machines[1] / "work" / "trials").glob("*/state/*")), joins)
    for process in (*psutil.Process(joins.pid).children(recursive=True), psutil.Process(joins.pid)):
        process.kill()
    assert leads.wait(600) == 0, (machines[0] / "said").read_text()
    joins.wait()

    alone = tmp_path / "alone"
    make_workspace(alone, "smoke")
    (alone / "data").symlink_to(searched / "data")
    write_params(alone, **with_search(trials=6))
    stage(alone, "search", "--workers", "1")
    for name in ("trials.csv", "curves.csv", "best.yaml"):
        assert (machines[0] / "reports" / "search" / name).read_bytes() == (
            alone / "reports" / "search" / name
        ).read_bytes(), name


@pytest.mark.slow
def test_the_studys_search_has_settings_and_results_of_its_own(searched: Path) -> None:
    before = records_of(searched)
    large = PARAMS["search"] | {"trials": 2, "confirm_seeds": [103]}
    with (searched / "study" / "params.yaml").open("w") as file:
        YAML(typ="safe").dump({"search": large}, file)
    stage(searched, "search", "--large", "--workers", "2")
    stage(searched, "search_report", "--large")
    confirmed = pd.read_csv(searched / "reports" / "study" / "search" / "confirmation.csv")
    assert set(confirmed["seed"]) == {103}
    assert "2 trials of" in (searched / "reports" / "study" / "search" / "search.md").read_text()
    assert records_of(searched) == before


@pytest.mark.slow
def test_a_search_that_is_done_does_nothing(searched: Path) -> None:
    before = records_of(searched)
    stage(searched, "search", "--workers", "1")
    assert records_of(searched) == before


def test_a_search_that_is_done_takes_more_trials_and_repeats_none(searched: Path) -> None:
    before = records_of(searched)
    write_params(searched, **with_search(trials=4))
    stage(searched, "search", "--workers", "1")
    trials = pd.read_csv(searched / "reports" / "search" / "trials.csv")
    assert len(trials) == 4
    kept = {key: record for key, record in before.items() if key.startswith("trials/")}
    assert kept.items() <= records_of(searched).items()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trails": 3}, "params.yaml: search.trails is not a known key; did you mean trials?"),
        ({"confirm_seeds": [0]}, "search.confirm_seeds: 0 is the search's own seed; allowed: others"),
        ({"train_flops": 1e9}, "search.train_flops=1e+09: a step of fine-tuning is 1.17e+07, too long"),
        (
            {"space": PARAMS["search"]["space"] | {"strategies": ["crop"], "crops": [4]}},
            "search.space: none of its masks fits the 4x4 token grid",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(prepared: Path, tmp_path: Path, changes: Any, says: str) -> None:
    make_workspace(tmp_path, "smoke")
    (tmp_path / "data").symlink_to(prepared / "data")
    write_params(tmp_path, **with_search(**changes))
    said = refusal(tmp_path, "search")
    assert said.startswith(f"error: {says}")
    assert said.count("\n") == 1


def test_a_missing_reference_is_found_before_anything_is_trained(prepared: Path, tmp_path: Path) -> None:
    make_workspace(tmp_path, "smoke")
    write_params(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepared").symlink_to(prepared / "data" / "prepared")
    assert refusal(tmp_path, "search").startswith("error: data/reference")
    assert not list((tmp_path / "work").rglob("study.db"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--workers", "0"), "error: --workers=0; allowed: a whole number from 1"),
        (("--join",), "error: MASKDM_SEARCH_STORAGE is not set"),
    ],
)
def test_a_wrong_argument_is_one_line(prepared: Path, arguments: tuple[str, ...], says: str) -> None:
    assert refusal(prepared, "search", *arguments).startswith(says)
