"""The figure of a search: each panel is drawn from the tables of `maskdm.search`."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from maskdm.reporting.figures import BASELINE, Color, stacked
from maskdm.runtime.units import percent, si_prefix

PRUNED = "0.7"
# Column of the table of trials -> what its axis is called; in the order of the parallel coordinates.
COORDINATES = {
    "mask": "mask",
    "effective_mask_ratio": "effective ratio",
    "phases": "masked phases",
    "share": "share of compute",
    "batch_size": "batch size",
    "lr": "learning rate",
    "heldout_loss": "held-out loss",
}
LOGARITHMIC = {"batch_size", "lr", "heldout_loss"}


def mask_colors(trials: pd.DataFrame) -> dict[str, Color]:
    """A colour a kind of mask, the same in all figures."""
    kinds = sorted(trials["mask"].unique())
    return dict(zip(kinds, sns.color_palette("colorblind", len(kinds)), strict=True))


def draw(trials: pd.DataFrame, curves: pd.DataFrame, importances: pd.DataFrame, train_flops: float) -> Figure:
    """All panels below each other: `history`, `front`, `importance`, `parallel_coordinates`.

    Args:
        trials: what `search.trials_frame` returns.
        curves: what `search.curves_frame` returns.
        importances: what `search.importance_frame` returns.
        train_flops: of one whole trial.
    """
    return stacked(
        {
            "History": (3.9, lambda place: history(place, trials, train_flops)),
            "Learning curves": (4.2, lambda place: front(place, trials, curves, train_flops)),
            "What decides": (1.0 + 0.32 * max(3, len(importances)), lambda place: importance(place, importances)),
            "All that was tried": (4.4, lambda place: parallel_coordinates(place, trials)),
        }
    )


def history(figure: SubFigure, trials: pd.DataFrame, train_flops: float) -> None:
    """Each trial's held-out loss in the order in which they ended, and the best so far against the compute spent."""
    single, spent = figure.subplots(1, 2, sharey=True)
    order, complete = np.arange(1, len(trials) + 1), trials["state"] == "complete"
    for kind, color in mask_colors(trials).items():
        own = complete & (trials["mask"] == kind)
        single.plot(order[own], trials.loc[own, "heldout_loss"], "o", color=color, markersize=5, label=kind)
    single.plot(
        order[~complete], trials.loc[~complete, "heldout_loss"], "x", color=PRUNED, markersize=5, label="pruned"
    )
    best = trials["heldout_loss"].where(complete).cummin().ffill()
    single.step(order, best, where="post", color=BASELINE, linewidth=1.2, label="best so far")
    single.set(xlabel="trial, as they ended", ylabel="held-out denoising loss", yscale="log")
    single.set_title("Each trial")
    factor, prefix = si_prefix(train_flops * trials["share_spent"].sum())
    spent.step(train_flops * trials["share_spent"].cumsum() / factor, best, where="post", color=BASELINE)
    spent.set_xlabel(f"compute spent by the search ({prefix}FLOPs)")
    spent.set_title("Best so far")
    single.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain_log_axis(single)
    figure.legend(*single.get_legend_handles_labels(), loc="outside right upper")


def front(figure: SubFigure, trials: pd.DataFrame, curves: pd.DataFrame, train_flops: float) -> None:
    """The learning curves of all trials and, below them, the best loss that any of them had at each compute."""
    axes = figure.subplots()
    factor, prefix = si_prefix(train_flops)
    colors, kinds = mask_colors(trials), trials.set_index("trial")["mask"]
    for trial, curve in curves.groupby("trial"):
        x = curve["share_spent"] * train_flops / factor
        axes.plot(x, curve["heldout_loss"], color=colors[kinds[trial]], linewidth=0.8, alpha=0.45)
    leaders = curves.loc[curves.groupby("share_spent")["heldout_loss"].idxmin()]
    x = leaders["share_spent"] * train_flops / factor
    axes.plot(x, leaders["heldout_loss"], color=BASELINE, linewidth=1.4, zorder=3)
    axes.scatter(x, leaders["heldout_loss"], color=[colors[kinds[trial]] for trial in leaders["trial"]], s=30, zorder=4)
    axes.set(xlabel=f"training compute of a trial ({prefix}FLOPs)", ylabel="held-out denoising loss", yscale="log")
    _plain_log_axis(axes)
    handles = [Line2D([], [], color=color, label=kind) for kind, color in colors.items()]
    handles.append(Line2D([], [], color=BASELINE, marker="o", label="best at each compute"))
    figure.legend(handles=handles, loc="outside right upper")


def importance(figure: SubFigure, importances: pd.DataFrame) -> None:
    """How much each parameter decides whether a trial is good."""
    axes = figure.subplots()
    bars = axes.barh(importances["parameter"], importances["importance"], color=sns.color_palette("colorblind")[0])
    axes.bar_label(bars, [percent(value) for value in importances["importance"]], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(False, axis="y")
    axes.set_xlabel("importance (PED-ANOVA)")


def parallel_coordinates(figure: SubFigure, trials: pd.DataFrame) -> None:
    """A line a trial through all that was chosen, coloured by its loss; pruned ones are grey, their losses cut off."""
    axes = figure.subplots()
    complete = trials[trials["state"] == "complete"]
    low, high = complete["heldout_loss"].min(), complete["heldout_loss"].max()
    trials = trials.assign(heldout_loss=trials["heldout_loss"].clip(upper=high))  # of pruned ones: off the scale
    norm = LogNorm(low, high if high > low else 1.01 * low)
    colors = ScalarMappable(norm, sns.color_palette("viridis", as_cmap=True))
    heights = pd.DataFrame({name: _coordinate(axes, trials, name, x) for x, name in enumerate(COORDINATES)})
    for index in complete["heldout_loss"].sort_values(ascending=False).index:  # the best on top
        loss = complete.loc[index, "heldout_loss"]
        axes.plot(range(len(COORDINATES)), heights.loc[index], color=colors.to_rgba(loss), linewidth=1.6, alpha=0.85)
    for index in trials.index.difference(complete.index):
        axes.plot(range(len(COORDINATES)), heights.loc[index], color=PRUNED, linewidth=0.8, zorder=1)
    axes.set_xticks(range(len(COORDINATES)), list(COORDINATES.values()))
    axes.set_yticks([])
    axes.set(xlim=(-0.3, len(COORDINATES) - 0.5), ylim=(-0.06, 1.06))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _coordinate(axes: Axes, trials: pd.DataFrame, name: str, x: int) -> pd.Series:
    """Draw one axis with its labels; returns the height, 0 to 1, of every trial on it."""
    values = trials[name]
    if name == "mask":
        places = {kind: float(place) for place, kind in enumerate(sorted(values.unique()))}
        numbers, labels = values.map(places), {place: kind for kind, place in places.items()}
    else:
        numbers = np.log(values) if name in LOGARITHMIC else values.astype(float)
        continuous = name in ("share", "lr", "heldout_loss") or values.nunique() > 5
        few = [values.min(), values.max()] if continuous else values.unique()
        labels = {float(np.log(v) if name in LOGARITHMIC else v): f"{v:.3g}" for v in few}
    low, span = numbers.min(), (numbers.max() - numbers.min()) or 1.0
    for place, label in labels.items():
        axes.annotate(
            label,
            (x, (place - low) / span),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
            zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},  # lines pass below
        )
    return (numbers - low) / span


def _plain_log_axis(axes: Axes) -> None:
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter(lambda value, _: f"{value:.3g}")
    axes.tick_params(which="minor", labelsize=8)
