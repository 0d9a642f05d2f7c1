"""The figures of the report: each function takes frames or arrays and returns a figure; `save` alone writes files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from maskdm.reporting.analysis import FLOOR, compute_to_target
from maskdm.runtime.files import write_atomically
from maskdm.runtime.units import percent, si_prefix
from maskdm.tracking.records import distance_metric

Color = tuple[float, float, float]
Colors = Mapping[str, Color]  # one an arm, the same in all figures; its order is the order of the legends

WIDTH = 10.0  # inches
NOUNS = {"train_flops": "compute", "train_seconds": "time"}  # what a horizontal axis may show
BASELINE = (0.2, 0.2, 0.2)
REMOVED = np.array([205, 214, 230], np.uint8)  # of a removed patch: a tint, so that it is not taken for grey clothes
PRETRAIN: dict[str, Any] = {"linestyle": (0, (3, 1.5)), "linewidth": 1.4, "alpha": 0.8}
SWITCH: dict[str, Any] = {"linestyle": "", "marker": "o", "markerfacecolor": "white", "markersize": 5, "zorder": 3}
DISPLAY_PIXELS = 1000  # least width of a picture that is drawn
STYLE = {
    **sns.axes_style("ticks"),
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.92",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "maskdm",  # the same input gives the same bytes
}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this context; the settings of matplotlib outside it stay as they are."""
    with mpl.rc_context(STYLE):
        yield


def save(figure: Figure, stem: Path) -> None:
    """Write `<stem>.png` and `<stem>.svg`, each whole or not at all, with the same bytes for the same figure."""
    with style():
        _write(figure, stem.with_name(f"{stem.name}.png"), {"Software": None})  # no version
        _write(figure, stem.with_name(f"{stem.name}.svg"), {"Date": None})


def _write(figure: Figure, path: Path, metadata: dict[str, Any]) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:], metadata=metadata))


def arm_colors(arms: list[str], baseline: str) -> dict[str, Color]:
    """A colour an arm that colour-blind readers can tell apart; the baseline is dark grey."""
    hues = [hue for hue in sns.color_palette("colorblind") if len(set(hue)) > 1]  # without its grey
    others = [arm for arm in arms if arm != baseline]
    if len(others) > len(hues):
        hues = sns.husl_palette(len(others))
    by_arm = dict(zip(others, hues, strict=False))
    return {arm: by_arm.get(arm, BASELINE) for arm in arms}


# --- curves -------------------------------------------------------------------------------------------------


def heldout_loss(losses: pd.DataFrame, colors: Colors, baseline: str, cost: str = "train_flops") -> Figure:
    """The held-out loss against `cost` (`train_flops` or `train_seconds`): the whole run, and its end enlarged.

    Args:
        losses: what `analysis.heldout_losses` returns.
        colors: what `arm_colors` returns.
        baseline: the arm whose final loss the right panel marks.
        cost: the column of the horizontal axis.
    """
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    whole, end = figure.subplots(1, 2)
    for axes in (whole, end):
        draw_losses(axes, losses, colors, cost)
    _log_loss_axis(whole)
    whole.set_ylabel("held-out denoising loss")
    whole.set_title("Whole run")
    shares = draw_target(end, losses, colors, baseline, cost)
    end.set_title(f"{NOUNS[cost].capitalize()} to {baseline}'s final loss")
    labels = {arm: f"{arm}  {percent(share) if np.isfinite(share) else 'not reached'}" for arm, share in shares.items()}
    handles = [*_arm_handles(colors, labels), *_phase_handles(losses)]
    _legend(figure, handles, f"{baseline}'s final loss, reached\nwith this share of its {NOUNS[cost]}")
    return figure


def draw_losses(axes: Axes, losses: pd.DataFrame, colors: Colors, cost: str) -> None:
    """One line an arm: pre-training dashed, fine-tuning solid, a ring at each switch of phases."""
    factor = cost_axis(axes, losses[cost].max(), cost)
    for arm, color in colors.items():
        curve = losses[losses["arm"] == arm].reset_index(drop=True)
        x, y = curve[cost] / factor, curve["heldout_loss"]
        pretrain = int((curve["stage"] == "pretrain").sum())
        axes.plot(x[:pretrain], y[:pretrain], color=color, **PRETRAIN)
        axes.plot(x[max(pretrain - 1, 0) :], y[max(pretrain - 1, 0) :], color=color)
        last = curve["phase"].ne(curve["phase"].shift(-1)) & (curve.index < len(curve) - 1)
        axes.plot(x[last], y[last], color=color, **SWITCH)


def draw_target(axes: Axes, losses: pd.DataFrame, colors: Colors, baseline: str, cost: str) -> dict[str, float]:
    """Enlarge the end of the curves and mark where each arm first reaches the baseline's final loss.

    Returns:
        The cost of that point for each arm, as a share of all that the baseline spent; infinity if it never comes.
    """
    largest = losses[cost].max()
    factor, _ = _unit(largest, cost)
    curves = {arm: losses[losses["arm"] == arm] for arm in colors}
    total, target = float(curves[baseline][cost].iloc[-1]), float(curves[baseline]["heldout_loss"].iloc[-1])
    reached = {arm: compute_to_target(curve[cost], curve["heldout_loss"], target) for arm, curve in curves.items()}
    axes.axhline(target, color=colors[baseline], linewidth=1, linestyle=":")
    for arm, point in reached.items():
        if np.isfinite(point):
            axes.plot([point / factor], [target], "D", color=colors[arm], markersize=5, zorder=4, clip_on=False)
    start = min(0.5 * largest, 0.9 * min(reached.values()))
    shown = losses.loc[losses[cost] >= start, "heldout_loss"]
    low, high = float(shown.min()), min(float(shown.max()), 1.3 * target)  # not the height of the pre-training
    axes.set_xlim(start / factor, 1.02 * largest / factor)
    margin = 0.06 * max(high - low, 0.01 * target)
    axes.set_ylim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return {arm: point / total for arm, point in reached.items()}


def distances(measured: pd.DataFrame, colors: Colors, cost: str = "train_flops") -> Figure:
    """The Fréchet distance and KID at each snapshot against `cost`, each with its floor.

    Args:
        measured: what `analysis.distances` returns.
        colors: what `arm_colors` returns.
        cost: the column of the horizontal axis.
    """
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    metric = distance_metric(measured)
    names = {metric: "FID" if metric == "fid" else metric, "kid": "KID"}
    for axes, (column, name) in zip(figure.subplots(1, 2), names.items(), strict=True):
        draw_distances(axes, measured, column, colors, cost)
        axes.set_ylabel(f"{name} (lower is better)")
    _legend(figure, _arm_handles(colors, {}))
    return figure


def draw_distances(axes: Axes, measured: pd.DataFrame, column: str, colors: Colors, cost: str) -> None:
    """One line an arm with a point a snapshot, and the floor as a dashed line."""
    factor = cost_axis(axes, measured[cost].max(), cost)
    for arm, color in colors.items():
        rows = measured[measured["arm"] == arm]
        axes.plot(rows[cost] / factor, rows[column], color=color, marker="o", markersize=4.5)
    floor = float(measured.loc[measured["arm"] == FLOOR, column].iloc[0])
    axes.axhline(floor, color="0.45", linestyle="--", linewidth=1.2)
    lowest = min(0.0, floor)
    axes.set_ylim(lowest - 0.04 * (measured[column].max() - lowest))  # room for a floor at 0
    axes.annotate(
        FLOOR, (0.01, floor), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", color="0.4"
    )


def cost_axis(axes: Axes, largest: float, cost: str) -> float:
    """Label the horizontal axis in a unit that fits `largest`; returns what to divide by."""
    factor, unit = _unit(largest, cost)
    axes.set_xlabel(f"training {NOUNS[cost]} ({unit})")
    axes.set_xlim(0, largest / factor * 1.02)
    return factor


def _unit(largest: float, cost: str) -> tuple[float, str]:
    if cost == "train_flops":
        factor, prefix = si_prefix(largest)
        return factor, f"{prefix}FLOPs"
    units = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))
    return next((unit for unit in units if largest >= 3 * unit[0]), (1.0, "seconds"))


def _log_loss_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, handles: list[Line2D], title: str | None = None) -> None:
    """One legend for all panels, beside them, where it can hide no line."""
    figure.legend(handles=handles, title=title, loc="outside right upper", alignment="left", handlelength=1.6)


def _arm_handles(colors: Colors, labels: Mapping[str, str]) -> list[Line2D]:
    return [Line2D([], [], color=color, label=labels.get(arm, arm)) for arm, color in colors.items()]


def _phase_handles(losses: pd.DataFrame) -> list[Line2D]:
    if not (losses["stage"] == "pretrain").any():
        return []
    return [
        Line2D([], [], color="0.5", **PRETRAIN, label="masked pre-training"),
        Line2D([], [], color="0.5", **SWITCH, label="switch of phase"),
    ]


# --- images -------------------------------------------------------------------------------------------------


def sample_grids(panels: Mapping[str, np.ndarray]) -> Figure:
    """A grid of images a panel, up to 8 x 8, in the order and under the names given.

    Args:
        panels: title -> uint8 [images, C, H, W], C 1 (grey) or 3 (RGB).
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, (WIDTH / columns + 0.3) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, images) in zip(grid, panels.items(), strict=False):
        show(axes, tile(images[:64], columns=8))
        axes.set_title(title)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def masks(images: np.ndarray, kept: Mapping[str, np.ndarray]) -> Figure:
    """Figure 3 of the paper: the images, then a row a mask with the removed patches in one pale tint.

    Args:
        images: uint8 [images, C, H, W].
        kept: title -> bool [images, rows, columns] on the token grid, true where a token is kept.
    """
    rows = {"training images": images} | {title: hide(images, mask) for title, mask in kept.items()}
    figure = Figure(figsize=(WIDTH, (WIDTH / len(images) + 0.3) * len(rows)), layout="constrained")
    for axes, (title, shown) in zip(figure.subplots(len(rows), 1, squeeze=False).ravel(), rows.items(), strict=True):
        show(axes, tile(shown, columns=len(shown)))
        axes.set_title(title)
    return figure


def hide(images: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Images uint8 [n, C, H, W] as RGB, without the patches where `kept` bool [n, rows, columns] is false."""
    patch = images.shape[-1] // kept.shape[-1]
    pixels = kept.repeat(patch, axis=1).repeat(patch, axis=2)[:, None]
    return np.where(pixels, images, REMOVED[:, None, None])


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Images uint8 [n, C, H, W] as one picture uint8 [height, width, C], row by row, a white line between them."""
    missing = -len(images) % columns
    lined = np.pad(images, ((0, missing), (0, 0), (0, 1), (0, 1)), constant_values=255)
    lined[len(images) :] = 255
    return rearrange(lined, "(row column) c h w -> (row h) (column w) c", column=columns)[:-1, :-1]


def show(axes: Axes, picture: np.ndarray) -> None:
    """Draw uint8 [H, W, C], grey or RGB, with nearest neighbours and nothing around it."""
    zoom = -(-DISPLAY_PIXELS // picture.shape[1])  # whole-number enlargement first: all pixels come out equally large
    shown = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    axes.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(False)
