"""The figures of the study: every function takes frames and returns a figure."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maskdm.figures import WIDTH, arm_colors, cost_axis
from maskdm.study_analysis import AGAINST, mean_curve

COSTS = ("train_flops", "train_seconds")
FAR = 10  # so many times as far from the baseline as the median arm: drawn, such an arm would squeeze the others
CHANGES = {"heldout_loss": "held-out loss", "distance": "distance to real images"}


def against_baseline(summary: pd.DataFrame, table: pd.DataFrame, baseline: str) -> Figure:
    """Every arm's change against the baseline of the same seed: a dot a seed, the mean, and its interval.

    The mean of an arm that is `FAR` from the baseline is written at the edge instead.

    Args:
        summary: what `study_analysis.summary` returns.
        table: what `study_analysis.trials` returns.
        baseline: the arm that is left out, because its change is 0.
    """
    rows = summary.set_index("arm").drop(index=baseline)
    arms = list(rows.index)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.32 * len(arms)), layout="constrained")
    for axes, (measure, name) in zip(figure.subplots(1, 2, sharey=True), CHANGES.items(), strict=True):
        column = f"{measure}{AGAINST}"
        change = _percent(rows[column])
        far = np.abs(change) > FAR * np.nanmedian(np.abs(change))
        for place, arm in enumerate(arms):
            if far[place]:
                edge, align = (1, "right") if change[place] > 0 else (0, "left")
                across = axes.get_yaxis_transform()
                axes.text(edge, place, f"{change[place]:+.0f} %", transform=across, ha=align, va="center")
                continue
            seeds = table.loc[table["arm"] == arm, column]
            axes.plot(_percent(seeds), [place] * len(seeds), "o", color="0.7", markersize=4)
            axes.plot(_percent(rows.loc[arm, [f"{column}_low", f"{column}_high"]]), [place] * 2, color="C0")
            axes.plot(change[place], place, "D", color="C0", markersize=5)
        axes.axvline(0, color="0.3", linewidth=1, linestyle=":")
        axes.set_xlabel(f"{name}, % against {baseline}")
        axes.set_yticks(range(len(arms)), arms)
    axes.invert_yaxis()
    return figure


def mean_curves(measured: pd.DataFrame, baseline: str) -> Figure:
    """Held-out loss and distance against compute and against time: the mean over the seeds, its interval as a band.

    Args:
        measured: what `study_analysis.curves` returns.
        baseline: the arm drawn in dark grey.
    """
    colors = arm_colors(list(measured["arm"].unique()), baseline)
    figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
    for row, cost in zip(figure.subplots(2, 2, sharey="col"), COSTS, strict=True):
        for axes, (measure, name) in zip(row, CHANGES.items(), strict=True):
            factor = cost_axis(axes, measured[cost].max(), cost)
            for arm, color in colors.items():
                curve = mean_curve(measured, arm, measure, cost)
                spent = curve[cost] / factor
                axes.plot(spent, curve["mean"], color=color, label=arm)
                axes.fill_between(spent, curve["low"], curve["high"], color=color, alpha=0.2, lw=0)
            axes.set_ylabel(name)
    _zoom(figure.axes[0], measured, baseline)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def throughput(table: pd.DataFrame) -> Figure:
    """Images a second, the share of the FLOP-ideal and memory against the share of tokens removed.

    Args:
        table: `throughput.csv`.
    """
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    batches = table["batch_size"].astype(str)
    panels = {
        "images_per_second": ("images/s", 1.0),
        "of_flop_ideal": ("FLOP/s over those of dense steps", 1.0),
        "memory_bytes": ("memory of training (MB)", 1e6),
    }
    for axes, (column, (name, factor)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        ratios, values = 100 * table["effective_mask_ratio"], table[column] / factor
        sns.scatterplot(x=ratios, y=values, hue=batches, ax=axes)
        axes.set_xlabel("tokens removed (%)")
        axes.set_ylabel(name)
        axes.set_ylim(0, 1.08 * values.max())
        axes.get_legend().set_title("batch")
    return figure


def _percent(shares: pd.Series) -> np.ndarray:
    return 100 * (np.asarray(shares, float) - 1)


def _zoom(axes: Axes, measured: pd.DataFrame, baseline: str) -> None:
    """Show what the baseline's loss does from a quarter of its compute on, not the height of pre-training."""
    losses = measured.dropna(subset="heldout_loss")
    base = losses[losses["arm"] == baseline]
    quarter = base.loc[base["train_flops"] >= 0.25 * base["train_flops"].max(), "heldout_loss"].max()
    axes.set_ylim(0.97 * losses["heldout_loss"].min(), 1.03 * quarter)
