"""The search: what it may propose, and that neither kills nor several workers change how much of it is done."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial, Trial, TrialState

from maskdm.compute import plan_finetune
from maskdm.config import BUDGET_TOLERANCE, Params, SearchSpace, load_params, load_recipe, read_yaml
from maskdm.errors import MaskDMError, StoppedEarly
from maskdm.records import read_records
from maskdm.search import (
    best_trials,
    curves_frame,
    feasible_masks,
    finished_trials,
    half_mask,
    importance_frame,
    open_storage,
    open_study,
    paper_phases,
    phases_of,
    report,
    revive,
    run_trials,
    suggest,
    trial_number,
    trials_frame,
)
from pipeline.trial import trial_params
from tests.conftest import PARAMS
from tests.imports import PROJECT
from tests.toy import ENVIRONMENT, write_params
from tests.workspace import make_workspace

SPACE = SearchSpace.model_validate(PARAMS["search"]["space"])
GRID = (4, 4)
PROFILES = sorted((PROJECT / "profiles").glob("*.yaml"))


# --- the space ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(side=st.integers(1, 16), seed=st.integers(0, 2**31))
def test_only_masks_that_fit_the_grid_are_proposed(side: int, seed: int) -> None:
    every = {"ratios": [0.01, 0.25, 0.5, 0.9, 0.99], "blocks": [1, 2, 3, 4, 8, 16], "crops": [1, 2, 3, 5, 8, 16, 17]}
    space = SPACE.model_copy(update={name: tuple(values) for name, values in every.items()})
    grid = (side, side)
    if not feasible_masks(space, grid):
        assert side == 1
        return
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    for _ in range(10):
        phases = suggest(study.ask(), space, grid)
        kept = [phase.mask.num_keep(grid) for phase in phases]
        assert all(0 < tokens < side**2 for tokens in kept)
        assert kept == sorted(set(kept)), "a second phase shows more than the first"
        assert sum(phase.share for phase in phases) <= space.share[1] + 0.001


def test_what_is_asked_depends_on_the_mask() -> None:
    common = {"share": 0.4, "batch_size": 8, "lr": 0.01}
    (crop,) = suggest(FixedTrial({"mask": "crop", "crop": 3, "phases": 1, **common}), SPACE, GRID)
    assert crop.mask.num_keep(GRID) == 9
    first, second = suggest(FixedTrial({"mask": "block2", "block2_ratio": 0.75, "phases": 2, **common}), SPACE, GRID)
    assert [phase.mask.num_keep(GRID) for phase in (first, second)] == [4, 8]
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
        trial = trial_params(params, "trial", phases, params.search.finetune, 0, wanted)
        plan = plan_finetune(trial, recipe, "trial")
        assert plan.train_flops(plan.steps) == pytest.approx(wanted, rel=BUDGET_TOLERANCE / 2)


# --- the study, with a loss that costs nothing --------------------------------------------------------------


def a_study(folder: Path, worker: int = 0, trials: int = 10) -> optuna.Study:
    return open_study(open_storage(None, folder), "toy", (0, worker), SPACE, trials)


def loss_of(trial: Trial) -> float:
    (first, *_) = suggest(trial, SPACE, GRID)
    for share in (0.25, 0.5, 0.75, 1.0):
        report(trial, share, first.share / share)
    return first.share


def test_pruned_trials_count_and_none_is_pruned_before_its_masks_are_over(tmp_path: Path) -> None:
    study = a_study(tmp_path, trials=20)
    run_trials(study, 20, loss_of)
    frame = trials_frame(study, SPACE, GRID)
    assert len(frame) == 20
    pruned = frame[frame["state"] == "pruned"]
    assert 0 < len(pruned) < 20
    assert (pruned["share_spent"] >= SPACE.share[1]).all()
    assert (pruned["share_spent"] < 1).all()
    assert best_trials(study, 1)[0].value == frame.loc[frame["state"] == "complete", "heldout_loss"].min()
    curves = curves_frame(study)
    assert set(curves["trial"]) == set(range(20))
    importance = importance_frame(study)
    assert importance["importance"].is_monotonic_decreasing
    assert "share" in set(importance["parameter"])


def test_the_same_key_draws_the_same_trials(tmp_path: Path) -> None:
    drawn = []
    for name in ("one", "two"):
        study = a_study(tmp_path / name, trials=6)
        run_trials(study, 6, loss_of)
        drawn.append(trials_frame(study, SPACE, GRID))
    pd.testing.assert_frame_equal(*drawn)
    study = a_study(tmp_path / "three", worker=1, trials=6)
    run_trials(study, 6, loss_of)
    assert not trials_frame(study, SPACE, GRID)["lr"].equals(drawn[0]["lr"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit], ids=["interrupted", "killed"])
def test_a_trial_whose_worker_stops_is_gone_on_with_under_its_number(tmp_path: Path, error: type) -> None:
    tried: list[tuple[int, float]] = []

    def stops(trial: Trial) -> float:
        loss = loss_of(trial)
        tried.append((trial_number(trial), loss))
        if len(tried) == 2:
            raise error  # SystemExit passes Optuna by, and leaves the trial as a kill does
        return loss

    with pytest.raises(error):
        run_trials(a_study(tmp_path), 4, stops)
    study = a_study(tmp_path)
    revive(study)
    run_trials(study, 4, stops)
    assert tried[1] == tried[2]
    assert sorted(trial_number(trial) for trial in finished_trials(study)) == [0, 1, 3, 4]


def test_a_failed_trial_is_not_repeated(tmp_path: Path) -> None:
    def fails(trial: Trial) -> float:
        loss_of(trial)
        raise MaskDMError("the loss became nan")

    with pytest.raises(MaskDMError, match="nan"):
        run_trials(a_study(tmp_path), 1, fails)
    study = a_study(tmp_path)
    revive(study)
    assert not study.get_trials(states=(TrialState.WAITING, TrialState.RUNNING))


def test_a_finished_study_has_nothing_to_do_and_takes_more_trials(tmp_path: Path) -> None:
    run_trials(a_study(tmp_path), 3, loss_of)
    study = a_study(tmp_path)
    run_trials(study, 3, lambda _: pytest.fail("done already"))
    run_trials(study, 5, loss_of)
    assert len(finished_trials(study)) == 5


def share_work(url: str | None, folder: Path, worker: int, count: int) -> None:
    """A worker in a process of its own; each trial it trains leaves a line."""

    def objective(trial: Trial) -> float:
        time.sleep(0.05)
        with (folder / f"worker{worker}").open("a") as file:
            file.write(f"{trial.number} {sorted(trial.params.items())}\n")
        return loss_of(trial)

    study = open_study(open_storage(url, folder), "toy", (0, worker), SPACE, count)
    run_trials(study, count, objective)


def assert_shared(url: str | None, folder: Path, count: int) -> None:
    """Two workers on one study do each trial once, and as many as asked for."""
    folder.mkdir(exist_ok=True)
    study = open_study(open_storage(url, folder), "toy", (0,), SPACE, count)
    workers = [get_context("spawn").Process(target=share_work, args=(url, folder, n, count)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    lines = [line for n in range(2) for line in (folder / f"worker{n}").read_text().splitlines()]
    numbers = [int(line.split()[0]) for line in lines]
    assert len(numbers) == len(set(numbers)) == count
    assert sorted(trial.number for trial in finished_trials(study)) == sorted(numbers)
    frame = trials_frame(study, SPACE, GRID)
    assert not frame.duplicated(["mask", "share", "lr"]).any(), "workers draw different trials"


def test_two_workers_share_a_journal(tmp_path: Path) -> None:
    assert_shared(None, tmp_path, 12)
