"""The line through an arm's gains at several budgets."""

import math

import numpy as np
import pytest
from scipy import stats

from maskdm.reporting import budgets, figures, law
from maskdm.reporting.analysed import Analysed
from maskdm.reporting.analysis import Row
from maskdm.reporting.page import rows_of
from tests.comparison import SPREAD
from tests.reporting.test_budgets import trained

# Twice as far from scratch with every tenfold budget.
COMPARISONS = [trained("large", 36e12), trained("middle", 12e12, worse=1.02), trained("small", 4e12, worse=1.06)]


def trends(comparisons: list[Analysed]) -> dict[str, Row]:
    found = law.trends(budgets.gains(comparisons), comparisons)
    return {row["arm"]: row for row in rows_of(found)}


def test_the_line_and_its_intervals_are_those_of_least_squares() -> None:
    row = trends(COMPARISONS)["block90"]
    x, y = [], []
    for found in COMPARISONS:
        own = found.trials[found.trials["arm"] == "block90"]
        y += (100 * (own["heldout_loss_against_baseline"] - 1)).tolist()
        x += [math.log10(found.params.budget.train_flops)] * len(own)
    assert len(y) == 12
    matrix = np.stack([np.ones(12), x], axis=1)
    weights, residual, *_ = np.linalg.lstsq(matrix, np.array(y), rcond=None)
    covariance = residual[0] / 10 * np.linalg.inv(matrix.T @ matrix)
    place = np.array([1.0, math.log10(law.PAPER_FLOPS)])
    half = stats.t.ppf(0.975, 10)
    assert row["slope"] == pytest.approx(weights[1])
    assert row["slope_high"] - row["slope"] == pytest.approx(half * math.sqrt(covariance[1, 1]))
    assert row["paper"] == pytest.approx(place @ weights)
    assert row["paper_high"] - row["paper"] == pytest.approx(half * math.sqrt(place @ covariance @ place))


def test_a_gain_that_grows_is_called_so_and_two_budgets_make_no_line() -> None:
    row = trends(COMPARISONS)["block90"]
    assert row["slope_high"] < 0
    assert row["slope_high"] - row["slope_low"] < 100 * 10 * SPREAD
    assert trends(COMPARISONS[:2]) == {}


def test_the_section_says_the_line_and_how_far_it_is_carried_on() -> None:
    gained = budgets.gains(COMPARISONS)
    said = law.law_answer(gained, law.trends(gained, COMPARISONS), "study/budgets")
    assert "that of `block90` grows (-" in said.in_short
    assert "6.2 powers of ten more than was measured" in said.section
    few = budgets.gains(COMPARISONS[:2])
    said = law.law_answer(few, law.trends(few, COMPARISONS[:2]), "study/budgets")
    assert "No arm was trained with 3 budgets" in said.in_short


def test_the_figure_has_every_arm_at_every_budget() -> None:
    gained = budgets.gains(COMPARISONS)
    with figures.style():
        [axes] = law.draw(gained, law.trends(gained, COMPARISONS), COMPARISONS).axes
    _, labels = axes.get_legend_handles_labels()
    assert labels == gained.groupby("series")["arm"].last().tolist()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["4", "12", "36"]
