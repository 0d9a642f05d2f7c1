"""How the gain changes with the budget: a line through several of them, and how far it can be trusted."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from maskdm.reporting import figures
from maskdm.reporting.analysed import Analysed
from maskdm.reporting.analysis import CONFIDENCE
from maskdm.reporting.budgets import FEWEST, columns, finding
from maskdm.reporting.page import LOSS, Answer, answer, as_table, listed, rows_of, table
from maskdm.runtime.units import si, si_prefix

PAPER_FLOPS = 6e19  # of the paper's trainings on images of 256 pixels
NUDGE = 1.05  # of the budget, from one arm to the next


def trends(gained: pd.DataFrame, comparisons: Sequence[Analysed]) -> pd.DataFrame:
    """Straight lines through the changes of the held-out loss, %, against the logarithm of the budget.

    Each seed at each budget is a point; least squares, with Student's t intervals of the line.

    Args:
        gained: what `gains` returns of `comparisons`.
        comparisons: with the trials.

    Returns:
        One row an arm of `FEWEST` budgets or more: series, arm, slope (points for ten times the compute), paper (the
        line at `PAPER_FLOPS`), with their `_low` and `_high`, and `intercept`.
    """
    trials = {found.name: found.trials for found in comparisons}
    rows = []
    for number_of, own in gained.groupby("series"):
        if len(own) < FEWEST:
            continue
        points = [
            (math.log10(row["train_flops"]), 100 * (ratio - 1))
            for row in rows_of(own)
            for ratio in _changes(trials[row["comparison"]], row["trained_as"])
        ]
        rows.append({"series": number_of, "arm": own["arm"].iloc[-1]} | _line(points))
    return pd.DataFrame(rows)


def _changes(trials: pd.DataFrame, arm: str) -> list[float]:
    """Of the held-out loss over that of the baseline, a ratio a seed."""
    found: list[float] = trials.loc[trials["arm"] == arm, LOSS].tolist()
    return found


def _line(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    x, y = np.array(points).T
    fit = stats.linregress(x, y)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2)
    at = math.log10(PAPER_FLOPS)
    paper = fit.intercept + fit.slope * at
    residual = fit.stderr * math.sqrt(((x - x.mean()) ** 2).sum())  # standard error of the points
    error = half * math.hypot(residual / math.sqrt(len(x)), fit.stderr * (at - x.mean()))
    return {
        "slope": fit.slope,
        "slope_low": fit.slope - half * fit.stderr,
        "slope_high": fit.slope + half * fit.stderr,
        "paper": paper,
        "paper_low": paper - error,
        "paper_high": paper + error,
        "intercept": fit.intercept,
    }


def law_answer(gained: pd.DataFrame, lines: pd.DataFrame, drawn: str) -> Answer:
    """How the gain changes with the budget.

    Args:
        gained: what `gains` returns.
        lines: what `trends` returns.
        drawn: path of the figure of `draw`, below `reports/`, without its ending.
    """
    section = [finding(gained), f"![gain against budget]({drawn}.png)", as_table(columns(gained))]
    if len(lines):
        decades = math.log10(PAPER_FLOPS / gained["train_flops"].max())
        shown = rows_of(lines)
        section += [
            table(
                {
                    "arm": [row["arm"] for row in shown],
                    "change for ten times the compute": [_points(row, "slope", "points") for row in shown],
                    f"the line at {si(PAPER_FLOPS, 'FLOPs')}": [_points(row, "paper", "%") for row in shown],
                }
            ),
            "A straight line against the logarithm of the budget, through each seed at each budget. The paper spends "
            f"{si(PAPER_FLOPS, 'FLOPs')}, {decades:.1f} powers of ten more than was measured, with one network and "
            "one data set. So what the line says there is no prediction.",
        ]
    return answer("How does the gain change with the budget?", _in_words(lines, gained), section)


def _in_words(lines: pd.DataFrame, gained: pd.DataFrame) -> str:
    if not len(lines):
        return f"No arm was trained with {FEWEST} budgets; with two: {listed(gained['arm'].unique().tolist())}."
    parts = []
    for row in rows_of(lines):
        grows = "shrinks" if row["slope_low"] > 0 else "grows" if row["slope_high"] < 0 else "does not clearly change"
        parts.append(f"that of `{row['arm']}` {grows} ({_points(row, 'slope', 'points')} for ten times the compute)")
    return f"As the budget grows, the gain in held-out loss: {'; '.join(parts)}."


def _points(row: dict[str, float], key: str, unit: str) -> str:
    return f"{row[key]:+.1f} {unit} ({row[f'{key}_low']:+.1f} to {row[f'{key}_high']:+.1f})"


def draw(gained: pd.DataFrame, lines: pd.DataFrame, comparisons: Sequence[Analysed]) -> Figure:
    """Each arm's change of the held-out loss against the budget, with its interval, and the line of `trends`.

    An arm looks as it does in the curves of its largest budget: a control has the colour of its arm, and is dashed.
    """
    by_name = {found.name: found for found in comparisons}
    figure = Figure(figsize=(figures.WIDTH * 0.6, 3.4), layout="constrained")
    axes = figure.subplots()
    factor, prefix = si_prefix(float(gained["train_flops"].max()))
    arms = gained["series"].nunique()
    slopes = {row["series"]: row for row in rows_of(lines)}
    for place, (number_of, own) in enumerate(gained.groupby("series")):
        beside = NUDGE ** (place - (arms - 1) / 2)  # the intervals of several arms would lie on each other
        largest = by_name[own["comparison"].iloc[-1]]
        name = own["trained_as"].iloc[-1]
        x, color, style = own["train_flops"] / factor, largest.colors[name], figures.line_style(name, largest.params)
        mean, low, high = (100 * (own[f"{LOSS}{end}"] - 1) for end in ("", "_low", "_high"))
        ends, inside = [mean - low, high - mean], color if style == "-" else "white"
        axes.errorbar(x * beside, mean, ends, fmt="o", color=color, mfc=inside, capsize=3, label=own["arm"].iloc[-1])
        if line := slopes.get(number_of):
            fitted = line["intercept"] + line["slope"] * np.log10(own["train_flops"])
            axes.plot(x, fitted, style, color=color, linewidth=1)
    axes.axhline(0, color="0.3", linewidth=1, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks(budgets := sorted(gained["train_flops"].unique() / factor), [f"{budget:g}" for budget in budgets])
    axes.minorticks_off()
    axes.set_xlabel(f"training compute of an arm ({prefix}FLOPs)")
    axes.set_ylabel("held-out loss, % against the baseline")
    axes.legend()
    return figure
