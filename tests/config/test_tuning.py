"""What a tuning may choose, and where it puts it."""

from typing import Any

import pytest

from maskdm.config.params import Params
from maskdm.config.reading import validated
from maskdm.config.recipe import Recipe
from maskdm.config.tuning import Dimension, Tuning
from maskdm.runtime.errors import MaskDMError
from maskdm.search import Chooser

RATES = {"rate": {"first": 1.0, "low": 0.5, "high": 4.0, "log": True}}
MASK = {"strategy": "crop", "crop": 2}


def tuning(arm: list[dict[str, Any]], space: dict[str, Any] = RATES) -> Tuning:
    return Tuning.model_validate({"arm": arm, "space": space})


def rates(found: tuple[Params, Recipe]) -> list[float]:
    params, recipe = found
    return [phase.optimisation(recipe).lr for phase in params.arms["arm"]]


def test_a_rate_is_a_factor_on_all_phases_but_the_last_or_on_the_only_one(params: Params, recipe: Recipe) -> None:
    own = recipe.optimisation.lr
    phases = [{"mask": MASK, "share": 0.3, "batch_size": 8}, {"share": 0.3, "batch_size": 8, "override": {"lr": 4e-3}}]
    three = tuning([*phases, {"batch_size": 8}])
    assert rates(three.settings("arm", params, recipe, {"rate": 1.5}, "here")) == [1.5 * own, 6e-3, own]
    assert rates(tuning([{"batch_size": 8}]).settings("arm", params, recipe, {"rate": 1.5}, "here")) == [1.5 * own]


def test_a_path_leads_to_a_setting_of_the_arm_the_recipe_or_the_network(params: Params, recipe: Recipe) -> None:
    chosen = {"recipe.optimisation.betas.1": 0.95, "model.depth": 5, "arm.0.batch_size": 4}
    own, found = tuning([{"batch_size": 8}]).settings("arm", params, recipe, chosen, "here")
    assert found.optimisation.betas == (recipe.optimisation.betas[0], 0.95)
    assert (own.model.blocks, own.arms["arm"][0].batch_size) == (5, 4)
    assert list(own.arms) == ["arm"]
    assert own.seeds == params.seeds


@pytest.mark.parametrize(
    "path", ["rte", "recipe.optimisation.bets.1", "arm.1.batch_size", "recipe.optimisation.betas.x"]
)
def test_a_path_that_leads_nowhere_is_named(path: str, params: Params, recipe: Recipe) -> None:
    with pytest.raises(MaskDMError, match=rf"here\.space\.{path}: no such setting; allowed: rate, or"):
        tuning([{"batch_size": 8}]).settings("arm", params, recipe, {path: 1}, "here")


def test_a_value_that_is_not_allowed_is_named(params: Params, recipe: Recipe) -> None:
    with pytest.raises(MaskDMError, match=r"here: optimisation\.decay=2"):
        tuning([{"batch_size": 8}]).settings("arm", params, recipe, {"recipe.optimisation.decay": 2}, "here")


@pytest.mark.parametrize(
    "dimension", [{}, {"low": 1.0}, {"low": 2.0, "high": 1.0}, {"low": 1, "high": 2, "choices": [1]}]
)
def test_a_dimension_is_a_range_or_a_list(dimension: dict[str, Any]) -> None:
    with pytest.raises(MaskDMError, match="allowed: low"):
        validated(Dimension, {"first": 1.0, **dimension}, "space")


@pytest.mark.parametrize(
    "dimension",
    [{"low": 1, "high": 8, "step": 2}, {"low": 1, "high": 9, "step": 2, "log": True}, {"choices": [1, 2], "step": 1}],
)
def test_steps_lead_from_one_end_of_a_range_to_the_other(dimension: dict[str, Any]) -> None:
    with pytest.raises(MaskDMError, match=r"step=\d; allowed: what divides high - low, without log"):
        validated(Dimension, {"first": 1, **dimension}, "space")


def chosen_by(trials: int, seed: int) -> list[dict[str, Any]]:
    """What is chosen for a loss that is least at rate 2, choice b and 7 blocks."""
    space = {
        "rate": Dimension(first=1.0, low=0.5, high=4.0, log=True),
        "kind": Dimension(first="a", choices=("a", "b")),
        "blocks": Dimension(first=5, low=3, high=9, step=2),
    }
    chooser, found = Chooser(space, seed), []
    for _ in range(trials):
        found.append(chooser.ask())
        trial = found[-1]
        chooser.tell(abs(trial["rate"] - 2) + (trial["kind"] == "a") + abs(trial["blocks"] - 7) / 4)
    return found


def test_trials_begin_with_the_untuned_arm_and_are_the_same_for_a_seed() -> None:
    found = chosen_by(12, seed=0)
    assert found[0] == {"rate": 1.0, "kind": "a", "blocks": 5}
    assert {type(trial["blocks"]) for trial in found} == {int}
    assert {trial["blocks"] for trial in found} <= {3, 5, 7, 9}
    assert found == chosen_by(12, seed=0)
    assert found[:6] == chosen_by(6, seed=0)
    assert found[1:] != chosen_by(12, seed=1)[1:]


def test_trials_close_in_on_the_best() -> None:
    last = chosen_by(20, seed=0)[-4:]
    assert any(trial["kind"] == "b" and abs(trial["rate"] - 2) < 0.2 and trial["blocks"] == 7 for trial in last)


def test_a_trial_that_diverged_is_no_end() -> None:
    chooser = Chooser({"rate": Dimension(first=1.0, low=0.5, high=4.0)}, seed=0)
    for _ in range(6):
        chooser.ask()
        chooser.tell(float("inf"))
