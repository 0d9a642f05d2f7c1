"""The search: what it may propose, and that neither kills nor several workers change how much of it is done."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pandas as pd
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from ruamel.yaml import YAML

import maskdm.search
from maskdm.config.comparison import mean_tokens
from maskdm.config.params import BUDGET_TOLERANCE, Params, Search, SearchSpace
from maskdm.config.reading import load_params, load_recipe, read_yaml
from maskdm.engine.searching import comparison, wait_for
from maskdm.runtime.errors import DivergedError, MaskDMError
from maskdm.search import (
    Attempt,
    best_trials,
    claim_lock,
    curves_frame,
    feasible_masks,
    half_mask,
    importance_frame,
    one_line_failures,
    open_storage,
    open_study,
    paper_phases,
    run_trials,
    study_file,
    suggest,
    trials_frame,
)
from maskdm.tracking.records import read_records
from maskdm.training.plan import plan_finetune, plan_pretrain
from tests.conftest import PARAMS
from tests.imports import PROJECT
from tests.kills import tracked
from tests.servers import free_port, postgres
from tests.workspace import ENVIRONMENT, make_workspace, write_params

SPACE = SearchSpace.model_validate(PARAMS["search"]["space"])
GRID = (4, 4)
PROFILES = sorted((PROJECT / "profiles").glob("*.yaml"))


# --- the space ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(side=st.integers(1, 16), seed=st.integers(0, 2**31))
def test_only_masks_that_fit_the_grid_are_proposed(side: int, seed: int) -> None:
    every = {"ratios": (0.01, 0.25, 0.5, 0.9, 0.99), "blocks": (1, 2, 3, 4, 8, 16), "crops": (1, 2, 3, 5, 8, 16, 17)}
    space = SPACE.model_copy(update=every)
    grid = (side, side)
    if not feasible_masks(space, grid):
        assert side == 1
        return
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    for _ in range(10):
        phases = suggest(study.ask(), space, grid)
        kept = [mean_tokens(phase, grid, blocks=1) for phase in phases]
        assert all(0 < tokens < side**2 for tokens in kept)
        assert kept == sorted(set(kept)), "a second phase shows more than the first"
        assert sum(phase.share or 0.0 for phase in phases) <= space.share[1] + 0.001


def test_what_is_asked_depends_on_the_mask() -> None:
    common = {"share": 0.4, "batch_size": 8, "lr": 0.01}
    (crop,) = suggest(FixedTrial({"mask": "crop", "crop": 3, "phases": 1, **common}), SPACE, GRID)
    assert mean_tokens(crop, GRID, blocks=1) == 9
    first, second = suggest(FixedTrial({"mask": "block2", "block2_ratio": 0.75, "phases": 2, **common}), SPACE, GRID)
    assert [mean_tokens(phase, GRID, blocks=1) for phase in (first, second)] == [4, 8]
    assert (first.share, second.share) == (0.2, 0.2)
    assert first.override == {"lr": 0.01}


def test_ratios_that_keep_equally_many_tokens_are_one_choice() -> None:
    space = SPACE.model_copy(update={"ratios": (0.7, 0.75, 0.8)})
    assert list(feasible_masks(space, GRID)["block2"]) == [0.7]


def test_no_second_phase_where_half_the_ratio_removes_nothing() -> None:
    masks = feasible_masks(SPACE.model_copy(update={"ratios": (0.25,)}), GRID)
    assert half_mask(masks["block2"][0.25], GRID) is None


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_trial_of_every_profile_spends_the_same_compute(path: Path) -> None:
    params = load_params(path)
    recipe, space, wanted = load_recipe(params.recipe, PROJECT), params.search.space, params.search.train_flops
    arms = [paper_phases(space, params.grid, params.search.finetune), ()]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    arms += [suggest(study.ask(), space, params.grid) for _ in range(4)]
    for phases in arms:
        trial = comparison(params, {"trial": (*phases, params.search.finetune)}, (0,), "trial")
        plan = plan_finetune(trial, recipe, "trial")
        assert plan.train_flops(plan.steps) == pytest.approx(wanted, rel=BUDGET_TOLERANCE / 2)


# --- the study, with a loss that costs nothing --------------------------------------------------------------

SEARCH = Search.model_validate(PARAMS["search"] | {"trials": 14, "parallel": 3})


def a_study(folder: Path, trials: int = SEARCH.trials, url: str | None = None) -> optuna.Study:
    return open_study(open_storage(url, folder), "toy", trials)


def run(study: optuna.Study, objective: Callable[[Attempt], float], trials: int = SEARCH.trials, seed: int = 0) -> None:
    run_trials(study, SEARCH.model_copy(update={"trials": trials}), GRID, seed, objective, nullcontext())


def loss_of(attempt: Attempt) -> float:
    (first, *_) = attempt.phases
    assert first.share is not None
    loss = first.share + attempt.number * 7 % 5 / 5  # with some chance, so that good guesses are pruned as well
    for share in (0.25, 0.5, 0.75, 1.0):
        attempt.report(share, loss / share)
    return loss


def searched_by_one(folder: Path, trials: int = SEARCH.trials) -> pd.DataFrame:
    """The trials of a study that nothing disturbed."""
    study = a_study(folder, trials)
    run(study, loss_of, trials)
    return trials_frame(study, SPACE, GRID)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return searched_by_one(tmp_path_factory.mktemp("undisturbed"))


def test_pruned_trials_count_and_none_is_pruned_before_its_masks_are_over(tmp_path: Path) -> None:
    study = a_study(tmp_path)
    run(study, loss_of)
    frame = trials_frame(study, SPACE, GRID)
    assert list(frame["trial"]) == list(range(SEARCH.trials))
    pruned = frame[frame["state"] == "pruned"]
    assert 0 < len(pruned) < SEARCH.trials
    assert (pruned["share_spent"] >= SPACE.share[1]).all()
    assert (pruned["share_spent"] < 1).all()
    assert best_trials(study, 1)[0].value == frame.loc[frame["state"] == "complete", "heldout_loss"].min()
    curves = curves_frame(study)
    assert set(curves["trial"]) == set(range(SEARCH.trials))
    importance = importance_frame(study)
    assert importance["importance"].is_monotonic_decreasing
    assert "share" in set(importance["parameter"])


def test_parameters_of_equal_importance_stand_in_the_order_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maskdm.search, "get_param_importances", lambda _: {"patch": 0.0, "lr": 0.9, "crop": 0.0})
    assert list(importance_frame(a_study(tmp_path))["parameter"]) == ["lr", "crop", "patch"]


def test_another_seed_draws_other_trials(undisturbed: pd.DataFrame, tmp_path: Path) -> None:
    study = a_study(tmp_path / "another", 4)
    run(study, loss_of, 4, seed=1)
    other = trials_frame(study, SPACE, GRID)
    assert not other["lr"].isin(undisturbed["lr"]).any()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError], ids=["interrupted", "ended", "failed"])
def test_a_trial_whose_worker_stops_is_gone_on_with_under_its_number(
    undisturbed: pd.DataFrame, tmp_path: Path, error: type
) -> None:
    tried: list[tuple[int, float]] = []

    def stops(attempt: Attempt) -> float:
        loss = loss_of(attempt)
        tried.append((attempt.number, loss))
        if len(tried) in (2, 9):
            raise error
        return loss

    for _ in range(2):
        with pytest.raises(error):
            run(a_study(tmp_path / "stopped"), stops)
    study = a_study(tmp_path / "stopped")
    run(study, stops)
    assert tried[1] == tried[2]
    pd.testing.assert_frame_equal(trials_frame(study, SPACE, GRID), undisturbed)


def test_a_trial_that_diverges_counts_as_the_worst_and_ends_nothing(tmp_path: Path) -> None:
    def diverges(attempt: Attempt) -> float:
        if attempt.number % 2:
            raise DivergedError("the loss became nan")
        return loss_of(attempt)

    study = a_study(tmp_path)
    run(study, diverges)
    frame = trials_frame(study, SPACE, GRID)
    assert set(frame.loc[frame["trial"] % 2 == 1, "state"]) == {"pruned"}
    assert (frame.loc[frame["trial"] % 2 == 1, "share_spent"] == 0).all()
    assert best_trials(study, 1)[0].number % 2 == 0


def test_a_finished_study_has_nothing_to_do_and_a_longer_one_begins_alike(
    undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    searched_by_one(tmp_path, 6)
    run(a_study(tmp_path, 6), lambda _: pytest.fail("done already"), 6)
    pd.testing.assert_frame_equal(searched_by_one(tmp_path), undisturbed)


# --- several workers ----------------------------------------------------------------------------------------


def share_work(url: str | None, folder: Path, worker: int, dies: bool, start: Barrier) -> None:
    """A worker in a process of its own, the second one much slower than the first; each trial leaves a line."""

    def objective(attempt: Attempt) -> float:
        time.sleep(0.02 + 0.2 * worker * (attempt.number % 3))
        with (folder / f"worker{worker}").open("a") as file:
            file.write(f"{attempt.number}\n")
        if dies and worker == 1:
            os._exit(9)  # as a kill does
        return loss_of(attempt)

    maskdm.search.HEARTBEAT_SECONDS, maskdm.search.GRACE_SECONDS = 1, 3
    study = a_study(folder, url=url)
    start.wait(120)  # or one that starts late finds all work done
    run_trials(study, SEARCH, GRID, 0, objective, claim_lock(url, folder))


def work(url: str | None, folder: Path, dies: bool = False) -> tuple[pd.DataFrame, list[int]]:
    """What two workers on one study come to, and the numbers of the trials that they worked at."""
    folder.mkdir(exist_ok=True)
    study = a_study(folder, url=url)
    context = get_context("spawn")
    start = context.Barrier(2)
    workers = [context.Process(target=share_work, args=(url, folder, n, dies, start)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 9 if dies else 0]
    lines = [int(line) for n in range(2) for line in (folder / f"worker{n}").read_text().splitlines()]
    return trials_frame(study, SPACE, GRID), lines


def test_two_workers_share_a_study_and_try_what_one_tries(undisturbed: pd.DataFrame, tmp_path: Path) -> None:
    together, tried = work(None, tmp_path)
    assert sorted(tried) == list(range(SEARCH.trials)), "each trial once"
    pd.testing.assert_frame_equal(together, undisturbed)


def test_workers_that_may_not_run_side_by_side_learn_from_every_trial(tmp_path: Path) -> None:
    alone = SEARCH.model_copy(update={"parallel": 1})
    known: list[int] = []

    def objective(attempt: Attempt) -> float:
        known.append(len(attempt.earlier.trials) - 1)  # itself not counted
        return loss_of(attempt)

    run_trials(a_study(tmp_path), alone, GRID, 0, objective, nullcontext())
    assert known == list(range(SEARCH.trials))


def test_the_worker_that_fails_is_the_one_that_is_named(tmp_path: Path) -> None:
    context = get_context("spawn")
    waits = context.Process(name="worker 0", target=time.sleep, args=(100,))
    fails = context.Process(name="worker 1", target=os._exit, args=(3,))
    found: Any = SimpleNamespace(
        study=lambda: a_study(tmp_path), project=SimpleNamespace(params=SimpleNamespace(search=SEARCH))
    )
    for process in (waits, fails):
        process.start()
    failed = wait_for(found, [waits, fails])
    waits.terminate()
    waits.join()
    assert failed is fails


# --- damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_a_damaged_study_is_one_line_that_names_it(tmp_path: Path, size: int) -> None:
    searched_by_one(tmp_path, 4)
    file = study_file(tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[:size])
    if size == 0:  # for SQLite a new database
        assert len(a_study(tmp_path, 4).get_trials()) == 4
        return
    with pytest.raises(MaskDMError) as caught, one_line_failures(None, tmp_path):
        trials_frame(a_study(tmp_path, 4), SPACE, GRID)
    assert str(caught.value).startswith(f"{file}: ")
    assert "delete" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_worker_that_dies_in_the_middle_of_a_write_loses_nothing(undisturbed: pd.DataFrame, tmp_path: Path) -> None:
    """SQLite's journal beside the file takes back what was half-written: the log of Optuna's own could not be read."""
    searched_by_one(tmp_path, 6)
    journal = study_file(tmp_path).with_name("study.db-journal")
    journal.write_bytes(b"\xd9\xd5\x05\xf9 half a page")
    pd.testing.assert_frame_equal(searched_by_one(tmp_path), undisturbed)


# --- PostgreSQL ---------------------------------------------------------------------------------------------


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of an empty database, of a server that this test starts and stops."""
    with postgres() as server:
        yield server.url


def test_two_workers_share_a_server_and_try_what_one_tries_in_a_file(
    undisturbed: pd.DataFrame, database: str, tmp_path: Path
) -> None:
    together, tried = work(database, tmp_path)
    assert sorted(tried) == list(range(SEARCH.trials))
    pd.testing.assert_frame_equal(together, undisturbed)


def test_a_server_goes_on_with_the_trial_of_a_worker_that_fell_silent(
    undisturbed: pd.DataFrame, database: str, tmp_path: Path
) -> None:
    together, tried = work(database, tmp_path, dies=True)
    assert len(tried) == SEARCH.trials + 1, "one trial was begun twice"
    pd.testing.assert_frame_equal(together, undisturbed)


def test_a_database_that_does_not_answer_is_one_line_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(MaskDMError) as caught:
        open_storage("postgresql+psycopg://me:secret@127.0.0.1:9/none", tmp_path)
    message = str(caught.value)
    assert message.startswith("storage postgresql+psycopg://127.0.0.1:9/none: ")
    assert "secret" not in message
    assert "\n" not in message


# --- the stage ----------------------------------------------------------------------------------------------


def stage(folder: Path, *arguments: str, expect: int = 0, name: str = "search") -> str:
    command = [sys.executable, "-m", f"pipeline.{name}", *arguments]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, text=True, capture_output=True, timeout=600)
    assert done.returncode == expect, done.stderr
    return done.stderr


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    """While the process runs, for five minutes at most."""
    deadline = time.monotonic() + 300
    while not holds():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


MASKDM = [sys.executable, "-c", "from maskdm.cli import main; main()"]


def with_search(**changes: Any) -> dict[str, Any]:
    return {"search": PARAMS["search"] | changes}


def records_of(folder: Path) -> dict[str, Any]:
    return {record.key: (record, machine) for record, machine in read_records(folder, ("search",))}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    make_workspace(folder, "smoke")
    write_params(folder)
    for name in ("prepare", "reference"):
        stage(folder, name=name)
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
    stage(prepared, "--workers", "2")
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


def test_a_search_that_has_not_begun_has_no_dashboard(prepared: Path, tmp_path: Path) -> None:
    make_workspace(tmp_path, "smoke")
    (tmp_path / "data").symlink_to(prepared / "data")
    write_params(tmp_path)
    command = [*MASKDM, "ui", "--search", "--large"]
    with (tmp_path / "study" / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(with_search(), file)
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "study.db: no such file; `dvc repro search` makes it" in done.stderr
    assert not list(tmp_path.rglob("study.db"))


def answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=10):
        return True
    return False


def test_the_page_and_the_figures_are_made_without_the_study(searched: Path) -> None:
    stage(searched, name="search_report")
    reports = searched / "reports" / "search"
    page = (reports / "search.md").read_text()
    assert "of 1 seeds" in page
    assert "One seed (101) an arm" in page
    assert "![trials](trials.png)" in page
    assert (reports / "trials.png").stat().st_size > 1000
    assert list(pd.read_csv(reports / "confirmation.csv")["arm"])[1:] == ["paper", "scratch"]


def test_another_number_of_workers_tries_the_same_trials_though_the_first_search_was_killed(
    searched: Path, tmp_path: Path
) -> None:
    make_workspace(tmp_path, "smoke")
    (tmp_path / "data").symlink_to(searched / "data")
    write_params(tmp_path)
    stage(tmp_path, "--workers", "1")
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
    stage(alone, "--workers", "1")
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
    stage(searched, "--large", "--workers", "2")
    stage(searched, "--large", name="search_report")
    confirmed = pd.read_csv(searched / "reports" / "study" / "search" / "confirmation.csv")
    assert set(confirmed["seed"]) == {103}
    assert "2 trials of" in (searched / "reports" / "study" / "search" / "search.md").read_text()
    assert records_of(searched) == before


def test_a_search_that_is_done_does_nothing_and_takes_more_trials(searched: Path) -> None:
    before = records_of(searched)
    stage(searched, "--workers", "1")
    assert records_of(searched) == before
    write_params(searched, **with_search(trials=4))
    stage(searched, "--workers", "1")
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
    said = stage(tmp_path, expect=2).strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"error: {says}")


def test_a_missing_reference_is_found_before_anything_is_trained(prepared: Path, tmp_path: Path) -> None:
    make_workspace(tmp_path, "smoke")
    write_params(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepared").symlink_to(prepared / "data" / "prepared")
    assert stage(tmp_path, expect=2).startswith("error: data/reference")
    assert not list((tmp_path / "work").rglob("study.db"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--workers", "0"), "error: --workers=0; allowed: a whole number from 1"),
        (("--join",), "error: MASKDM_SEARCH_STORAGE is not set"),
    ],
)
def test_a_wrong_argument_is_one_line(prepared: Path, arguments: tuple[str, ...], says: str) -> None:
    assert stage(prepared, *arguments, expect=2).startswith(says)
