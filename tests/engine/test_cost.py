"""The estimate of a whole run: what it counts, and what a slower machine or slower masks make of it."""

from dataclasses import replace

import pytest
import torch
from ruamel.yaml import YAML

from maskdm.config.params import Params
from maskdm.config.reading import load_recipe, validated
from maskdm.config.recipe import Recipe
from maskdm.engine import cost
from maskdm.engine.cost import FIXED_STAGES, STAGES_OF_AN_ARM, Cost, Speed, exact_speed, rough_speed
from maskdm.training.plan import PhasePlan
from tests.engine.test_init import found, proposed
from tests.imports import PROJECT

RECIPE = load_recipe("tuned", PROJECT)
SPEED = Speed(dense=4e10, arms=4e10, search=4e10, extracting=400.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def params() -> Params:
    return validated(Params, proposed(found(3000)), "proposal")


def of(params: Params, speed: Speed = SPEED, workers: int = 2) -> Cost:
    return Cost(params, RECIPE, speed, workers, reading=10.0, of_search=0.2)


def test_the_budget_of_a_time_takes_that_time(params: Params) -> None:
    whole = of(params)
    assert whole.seconds(whole.budget(5000.0)) == pytest.approx(5000.0)
    assert whole.budget(whole.beside) == pytest.approx(0.0, abs=1.0)
    assert whole.budget(0.0) < 0


def test_training_is_counted_once_for_each_trial(params: Params) -> None:
    trials = len(params.arms) * len(params.seeds)
    runs = params.search.trials + 3 * len(params.search.confirm_seeds)
    flops = trials * 1e12 + runs * 0.2e12
    whole = of(params)
    assert whole.seconds(1e12) - whole.beside == pytest.approx(flops / 4e10 / 2)


@pytest.mark.parametrize("slower", ["dense", "arms", "search", "extracting"])
def test_whatever_is_slower_takes_longer(params: Params, slower: str) -> None:
    slow = replace(SPEED, **{slower: getattr(SPEED, slower) / 2})
    assert of(params, slow).seconds(1e12) > of(params).seconds(1e12)


def test_one_trial_at_a_time_takes_longer_than_two(params: Params) -> None:
    assert of(params, workers=1).seconds(1e12) > 1.5 * of(params).seconds(1e12)


def test_every_stage_is_started() -> None:
    stages = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]
    of_arms = [name for name, stage in stages.items() if "foreach" in stage]
    assert (len(stages) - len(of_arms), len(of_arms)) == (FIXED_STAGES, STAGES_OF_AN_ARM)


def test_masked_steps_are_measured_by_themselves(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(_: Params, __: Recipe, plan: PhasePlan, ___: torch.device) -> float:
        return 1e10 if plan.mask else (4e10 if plan.batch_size > params.search.finetune.batch_size else 2e10)

    for place in ("maskdm.engine.cost.measure_rate", "maskdm.engine.dry_run.measure_rate"):
        monkeypatch.setattr(place, rate)
    monkeypatch.setattr(cost, "BATCHES", 2)
    rough = rough_speed(params, RECIPE, CPU)
    assert (rough.dense, rough.arms, rough.search) == (4e10, 4e10, 4e10)
    assert rough.extracting > 0
    exact = exact_speed(params, RECIPE, CPU, rough)
    assert 1e10 < exact.arms < 4e10
    assert 1e10 < exact.search < 2e10, "a half of its trials is masked in part, all have small batches"
    assert (exact.dense, exact.extracting) == (rough.dense, rough.extracting)
