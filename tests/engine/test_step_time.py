"""Steps are timed in turn: what a busy machine does, and what the settings do not change, leaves their ratios alone."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from maskdm.config.networks import DiTModel
from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.engine import step_time
from maskdm.engine.step_time import TimedArm, fair_seconds, seconds_a_step, spread, timed_rounds, work
from maskdm.runtime.errors import MaskDMError
from maskdm.tracking.records import StepTimes, read_step_times, write_step_times
from maskdm.training.plan import arm_plans
from tests.conftest import MODELS

COSTS = {"dense": 1.0, "masked": 0.7, "small": 0.1}  # seconds of a step on an idle machine


class Clock:
    """A fake one: steps alone move it on, and `slowness` says how much the machine is slowed at a time."""

    def __init__(self, slowness: Callable[[float], float]) -> None:
        self.now, self.slowness = 0.0, slowness

    def __call__(self) -> float:
        return self.now

    def step(self, cost: float) -> Callable[[], None]:
        def run() -> None:
            self.now += cost * self.slowness(self.now)

        return run


def measured(monkeypatch: pytest.MonkeyPatch, slowness: Callable[[float], float]) -> dict[str, float]:
    """Seconds of `COSTS` on a machine that is slowed."""
    clock = Clock(slowness)
    monkeypatch.setattr(step_time, "perf_counter", clock)
    return fair_seconds(timed_rounds({kind: clock.step(cost) for kind, cost in COSTS.items()}))


@pytest.mark.parametrize(("switch", "dense"), [(-1.0, 3.0), (7.3, 1.0), (40.0, 1.0), (65.0, 1.0), (1e9, 1.0)])
def test_a_machine_three_times_as_slow_from_some_time_on_leaves_the_ratios(
    monkeypatch: pytest.MonkeyPatch, switch: float, dense: float
) -> None:
    seconds = measured(monkeypatch, lambda now: 3.0 if now > switch else 1.0)
    for kind, cost in COSTS.items():
        assert seconds[kind] / seconds["dense"] == pytest.approx(cost, rel=1e-9)
    assert seconds["dense"] == pytest.approx(dense)


def test_a_slow_drift_and_single_steps_that_are_hit_leave_the_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(0)
    seconds = measured(monkeypatch, lambda now: (1 + now / 100) * (20 if random.random() < 0.05 else 1))
    for kind, cost in COSTS.items():
        assert seconds[kind] / seconds["dense"] == pytest.approx(cost, rel=0.03)


def test_the_spread_tells_a_steady_machine_from_one_that_other_work_takes_turns_on() -> None:
    steady = [{"dense": 1.0 * slow, "masked": 0.5 * slow} for slow in (1, 3, 1, 2, 1, 1, 3, 1)]
    assert spread(steady) == pytest.approx(0)
    hit = [{"dense": dense, "masked": 1.0} for dense in (1.0, 3.0) * 4]  # half of the dense steps: shares 1/2 and 3/4
    assert spread(hit) == pytest.approx((1 / 2 - 1 / 4) / (3 / 8))
    once = [*steady, {"dense": 50.0, "masked": 0.5}]
    assert spread(once) == pytest.approx(0)


def test_steps_on_an_idle_machine_take_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, lambda _: 1.0) == pytest.approx(COSTS)


@pytest.mark.parametrize(("cost", "rounds"), [(0.1, step_time.ROUNDS), (8.0, 38), (1000.0, step_time.MIN_ROUNDS)])
def test_there_are_as_many_rounds_as_the_time_allows_and_never_too_few(
    monkeypatch: pytest.MonkeyPatch, cost: float, rounds: int
) -> None:
    clock = Clock(lambda _: 1.0)
    monkeypatch.setattr(step_time, "perf_counter", clock)
    assert len(timed_rounds({"dense": clock.step(cost)})) == rounds


def test_phases_are_one_kind_if_their_steps_do_the_same_work(params: Params, recipe: Recipe) -> None:
    (plan,) = arm_plans(params, recipe, "scratch")
    masked, _ = arm_plans(params, recipe, "patch75")
    alike: list[dict[str, Any]] = [{"steps": 7}, {"index": 2}, {"optimisation": changed(recipe, lr=1.0, warmup=0.5)}]
    others: list[dict[str, Any]] = [
        {"batch_size": 9},
        {"mask": masked.mask},
        {"positions": False},
        {"optimisation": changed(recipe, hflip=0.5)},
    ]
    assert {work(replace(plan, **change)) for change in alike} == {work(plan)}
    assert work(plan) not in {work(replace(plan, **change)) for change in others}


def changed(recipe: Recipe, **settings: float) -> Any:
    return recipe.optimisation.model_copy(update=settings)


def test_every_phase_of_every_arm_has_its_seconds(
    params: Params, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real steps by a clock that ticks once for each look at it: all of them take the same."""
    ticks = itertools.count()
    monkeypatch.setattr(step_time, "perf_counter", lambda: float(next(ticks)))
    dit = params.model_copy(update={"model": DiTModel.model_validate(MODELS["dit"])})
    arms = {arm: TimedArm(params, recipe, arm_plans(params, recipe, arm)) for arm in params.arms}
    arms["dit"] = TimedArm(dit, recipe, arm_plans(dit, recipe, "scratch"))
    seconds, spread = seconds_a_step(arms, torch.device("cpu"))
    assert {arm: len(own) for arm, own in seconds.items()} == {"scratch": 1, "patch75": 2, "staged": 3, "dit": 1}
    assert [second for own in seconds.values() for second in own] == pytest.approx([1] * 7)
    assert arms["dit"].kinds() != arms["scratch"].kinds()
    assert spread == pytest.approx(0)


def test_what_was_measured_is_read_as_it_was_written(tmp_path: Path) -> None:
    hardware = {"device": "a GPU", "cpu": "a CPU", "cores": 16, "processes": 4}
    times = StepTimes("2026-01-01T00:00:00+00:00", {"commit": "0123456789"}, hardware, {"scratch": [0.25]}, 0.031)
    path = tmp_path / "step_time.json"
    with pytest.raises(MaskDMError, match=r"step_time\.json: no such file; the stage `step_time` writes it"):
        read_step_times(path)
    write_step_times(path, times)
    assert read_step_times(path) == times
    assert times.machine == "a GPU, 4 processes; commit `0123456`; spread 3.1 %"
