"""The search: what it may propose, and that neither kills nor several workers change what it tries."""

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from sqlalchemy import create_engine, text

import maskdm.search
from maskdm.config.comparison import mean_tokens
from maskdm.config.params import BUDGET_TOLERANCE, Search, SearchSpace
from maskdm.config.reading import load_params, load_recipe
from maskdm.engine.searching import comparison, wait_for, write_results
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
from maskdm.training.plan import plan_finetune
from tests.conftest import PARAMS
from tests.imports import PROJECT

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


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_trial_that_ends_without_a_finite_loss_is_a_diverged_one(tmp_path: Path, loss: float) -> None:
    study = a_study(tmp_path, 3)
    run(study, lambda attempt: loss if attempt.number else 1.0, 3)
    assert list(trials_frame(study, SPACE, GRID)["state"]) == ["complete", "pruned", "pruned"]


def test_a_search_whose_trials_all_diverge_is_one_line(tmp_path: Path) -> None:
    def diverges(_: Attempt) -> float:
        raise DivergedError("the loss became nan")

    study = a_study(tmp_path, 3)
    run(study, diverges, 3)
    params = SimpleNamespace(search=SEARCH.model_copy(update={"trials": 3}), grid=GRID)
    found: Any = SimpleNamespace(study=lambda: study, project=SimpleNamespace(params=params))
    with pytest.raises(MaskDMError, match="each of the 3 trials diverged; allowed: a smaller "):
        write_results(found)


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


def test_the_database_of_another_program_is_one_line_that_says_what_to_do(database: str, tmp_path: Path) -> None:
    """MLflow keeps the number of its own version in a table that Optuna's has the name of."""
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.execute(text("create table alembic_version (version_num varchar(32))"))
        connection.execute(text("insert into alembic_version values ('bd07f7e963c5')"))
    engine.dispose()
    with pytest.raises(MaskDMError, match="allowed: a database that no other program, such as MLflow, ") as caught:
        open_storage(database, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_database_to_share(tmp_path: Path) -> None:
    with pytest.raises(MaskDMError, match="two workers may take the same trial; allowed: the database of a server"):
        open_storage(f"sqlite:///{tmp_path}/study.db", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_database_that_does_not_answer_is_one_line_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(MaskDMError) as caught:
        open_storage("postgresql+psycopg://me:secret@127.0.0.1:9/none", tmp_path)
    message = str(caught.value)
    assert message.startswith("storage postgresql+psycopg://127.0.0.1:9/none: ")
    assert "secret" not in message
    assert "\n" not in message
