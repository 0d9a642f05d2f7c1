"""The same arm at several budgets."""

from dataclasses import replace
from typing import Any

import pytest

from maskdm.config.params import Params
from maskdm.reporting import budgets
from maskdm.reporting.analysed import Analysed
from maskdm.reporting.page import LOSS
from tests.comparison import NOISE, REDUCTION, analysed, make_records, settings


def trained(name: str, flops: float, seeds: int = 4, **changes: Any) -> Analysed:
    """A comparison of that budget; arms are worse by `worse`."""
    worse = changes.pop("worse", 1.0)
    own = settings() | {"seeds": list(NOISE)[:seeds]} | changes
    own["budget"] = {"train_flops": flops, "snapshots": [1.0]}
    params = Params.model_validate(own)
    reduction = {arm: REDUCTION[arm] * (1.0 if arm == "scratch" else worse) for arm in params.arms}
    return replace(analysed(params, make_records(params, reduction)), name=name)


def test_an_arm_is_followed_over_its_budgets_in_their_order() -> None:
    gained = budgets.gains([trained("large", 36e12), trained("small", 9e12, worse=1.1)])
    own = gained[gained["arm"] == "block90"]
    assert own["train_flops"].tolist() == [9e12, 36e12]
    assert own[LOSS].tolist() == pytest.approx([0.94 * 1.1, 0.94], rel=1e-3)
    assert own["series"].nunique() == 1
    assert len(gained) == 2 * 4, "each arm but the baseline"


def test_with_one_budget_there_is_nothing_to_say() -> None:
    assert len(budgets.gains([trained("one", 36e12)])) == 0
    assert len(budgets.gains([trained("one", 36e12), trained("again", 36e12)])) == 0
    assert len(budgets.gains([])) == 0


def test_names_do_not_make_an_arm_and_the_last_one_stands_for_all() -> None:
    arms = settings()["arms"]
    renamed = {"scratch": arms["scratch"], "crop3": arms["block90"]}
    gained = budgets.gains([trained("small", 9e12), trained("large", 36e12, arms=renamed, controls={})])
    assert gained["arm"].tolist() == ["crop3", "crop3"]


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "paper"},
        {"model": settings()["model"] | {"depth": 7}},
        {"arms": settings()["arms"] | {"scratch": [{"batch_size": 16}]}},
    ],
    ids=["recipe", "network", "baseline"],
)
def test_what_differs_in_more_than_the_budget_is_not_compared(changes: dict[str, Any]) -> None:
    gained = budgets.gains([trained("large", 36e12), trained("small", 9e12, **changes)])
    assert len(gained) == 0


def test_other_data_are_not_compared() -> None:
    small = trained("small", 9e12)
    small = replace(small, data=small.data | {"sha256": "cd" * 32})
    assert len(budgets.gains([trained("large", 36e12), small])) == 0


def test_of_two_comparisons_at_one_budget_that_with_more_seeds_is_taken() -> None:
    gained = budgets.gains([trained("few", 9e12, seeds=2), trained("many", 9e12), trained("large", 36e12)])
    assert set(gained["comparison"]) == {"many", "large"}


def test_the_finding_and_the_table_say_the_ends() -> None:
    gained = budgets.gains([trained("large", 36e12), trained("small", 9e12, worse=1.1)])
    [line] = [line for line in budgets.finding(gained).splitlines() if "block90" in line]
    assert line.startswith(
        "- `block90`, 2x2 blocks, 90 %: +3.4 % at 9 TFLOPs (+3.0 to +3.8 %), -6.0 % at 36 TFLOPs (-6"
    )
    columns = {column.title: column for column in budgets.columns(gained)}
    assert columns["budget"].values == gained["train_flops"].tolist()
    assert "-6.0 % (-6.4 to -5.6 %)" in columns["loss against the baseline"].cells
    assert "0 of 4 seeds" in columns["compute to the baseline's loss"].cells


def test_lines_are_drawn_of_arms_with_three_budgets_if_there_are_some() -> None:
    arms = settings()["arms"]
    two = [trained("small", 9e12), trained("large", 36e12)]
    assert len(budgets.most_measured(budgets.gains(two))) == 2 * 4, "none has three"
    alone = {"scratch": arms["scratch"], "block90": arms["block90"]}
    most = budgets.most_measured(budgets.gains([*two, trained("middle", 18e12, arms=alone, controls={})]))
    assert most["arm"].tolist() == ["block90"] * 3
    assert most["train_flops"].tolist() == [9e12, 18e12, 36e12]
    assert budgets.most_measured(budgets.gains([])).empty
