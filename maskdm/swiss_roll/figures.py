"""The figures of the Swiss roll: what both arms sample along the way, and how far that is from the true points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from scipy.ndimage import gaussian_filter

from maskdm.reporting.analysis import FLOOR
from maskdm.reporting.figures import WIDTH, Colors, cost_axis

EXTENT = 1.25  # half the side of a panel; the roll ends at 1
BINS = 80  # a side of a heat map
BLUR = 1.2  # bins: a kernel as wide as the line, so that 2,000 points look like a density
NAMES = {"pretrained": "pre-trained on single coordinates", "scratch": "from scratch"}


@dataclass(frozen=True)
class Panel:
    """One heat map."""

    title: str
    points: np.ndarray  # [n, 2]
    distance: float


def samples(rows: Mapping[str, Sequence[Panel | None]], curve: np.ndarray, floor: float) -> Figure:
    """Figure 1 of the paper: a row of densities for each training, the true curve `[n, 2]` in red over each.

    Args:
        rows: name -> panels, as many in each row; None leaves a gap.
        curve: points along the roll, in order.
        floor: the distance of as many true points.
    """
    columns = max(map(len, rows.values()))
    height = (WIDTH / columns + 0.3) * len(rows) + 0.3
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    for axes_row, (name, panels) in zip(figure.subplots(len(rows), columns, squeeze=False), rows.items(), strict=True):
        for axes, panel in zip(axes_row, panels, strict=True):
            if panel is None:
                axes.axis("off")
                continue
            draw_density(axes, panel.points)
            axes.plot(*curve.T, color="tab:red", linewidth=0.7)
            axes.set_title(panel.title, fontsize=9)
            axes.set_xlabel(f"{panel.distance:.3f}", fontsize=9, labelpad=2)
        axes_row[0].text(-0.08, 0.5, name, transform=axes_row[0].transAxes, rotation=90, ha="right", va="center")
    note = f"Below each panel: its sliced Wasserstein distance to the roll (of as many true points: {floor:.3f})"
    handles = [Line2D([], [], color="tab:red", linewidth=1, label="the true curve")]
    figure.legend(handles=handles, title=note, loc="outside lower center", ncols=1)
    return figure


def draw_density(axes: Axes, points: np.ndarray) -> None:
    """A smoothed histogram of points `[n, 2]`, white to blue; the scale is the same for every panel."""
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=BINS, range=[[-EXTENT, EXTENT]] * 2)
    density = gaussian_filter(counts / len(points) * (BINS / (2 * EXTENT)) ** 2, BLUR)
    axes.imshow(
        density.T, origin="lower", extent=(-EXTENT, EXTENT, -EXTENT, EXTENT), cmap="Blues", norm=PowerNorm(0.5, 0, 3)
    )
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set(visible=True, color="0.8")


def distances(measured: pd.DataFrame, finetune_steps: Sequence[int], colors: Colors) -> Figure:
    """The distance of both arms by steps on pairs and by all training compute: mean over the seeds, and their range.

    Args:
        measured: columns arm, seed, step, train_flops, sliced_wasserstein; the arm `FLOOR` is the floor.
        finetune_steps: the looks that both arms have in common.
        colors: of the arms.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    by_step, by_compute = figure.subplots(1, 2, sharey=True)
    for axes, cost in ((by_step, "step"), (by_compute, "train_flops")):
        shown = measured[measured["step"].isin(finetune_steps)] if cost == "step" else measured
        factor = cost_axis(axes, measured[cost].max(), cost) if cost == "train_flops" else 1.0
        for arm, color in colors.items():
            looks = shown[shown["arm"] == arm].groupby(cost)["sliced_wasserstein"].agg(["mean", "min", "max"])
            axes.plot(looks.index / factor, looks["mean"], color=color, marker="o", markersize=3.5)
            axes.fill_between(looks.index / factor, looks["min"], looks["max"], color=color, alpha=0.2, linewidth=0)
        floor = measured.loc[measured["arm"] == FLOOR, "sliced_wasserstein"].mean()
        axes.axhline(floor, color="0.45", linestyle="--", linewidth=1.2)
    by_step.set(xlabel="steps of training on pairs", ylabel="sliced Wasserstein distance", yscale="log")
    by_step.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    by_step.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    by_step.yaxis.set_minor_locator(NullLocator())
    by_step.set_title("At equal steps, pre-training left out")
    by_compute.set_title("At equal compute, pre-training counted in")
    handles = [
        Line2D([], [], color=color, marker="o", markersize=3.5, label=NAMES[arm]) for arm, color in colors.items()
    ]
    handles.append(Line2D([], [], color="0.45", linestyle="--", linewidth=1.2, label="as many true points"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
