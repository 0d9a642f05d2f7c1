"""The figures of a comparison: each function takes frames or arrays and returns a figure; `save` alone writes files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from einops import rearrange, reduce
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from maskdm.config.comparison import Comparison
from maskdm.reporting.analysis import AGAINST, mean_curve
from maskdm.runtime.files import write_atomically
from maskdm.runtime.units import si_prefix

Color = tuple[float, float, float]
Colors = Mapping[str, Color]  # one an arm, the same in all figures; its order is the order of the legends

WIDTH = 10.0  # inches
NOUNS = {"train_flops": "training compute", "train_seconds": "training time", "images_seen": "images seen"}  # axes
DRAWN = ("train_flops", "train_seconds")  # those of the figures; the HTML page has all
BASELINE = (0.2, 0.2, 0.2)
REMOVED = np.array([205, 214, 230], np.uint8)  # of a removed patch: a tint, so that it is not taken for grey clothes
FADED = 0.65  # share of the tint where some blocks of the network see a removed patch
FEW = 10  # points of a curve: up to so many are marked
FAR = 5  # so many times as far from the baseline as the median arm reaches: drawn, such an arm would squeeze the others
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
}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this context; the settings of matplotlib outside it stay as they are."""
    with mpl.rc_context(STYLE):
        yield


def save(figure: Figure, stem: Path) -> None:
    """Write `<stem>.png`, whole or not at all, with the same bytes for the same figure."""
    with style():
        path, metadata = stem.with_name(f"{stem.name}.png"), {"Software": None}  # no version
        write_atomically(path, lambda file: figure.savefig(file, format="png", metadata=metadata))


def arm_colors(arms: Sequence[str], baseline: str, controls: Mapping[str, str] = {}) -> dict[str, Color]:
    """A colour an arm that colour-blind readers can tell apart; the baseline is dark grey, a control as its arm.

    Args:
        arms: in the order of the legends.
        baseline: one of them.
        controls: control -> the arm that it is one of.
    """
    hues = [hue for hue in sns.color_palette("colorblind") if len(set(hue)) > 1]  # without its grey
    others = [arm for arm in arms if arm != baseline and arm not in controls]
    if len(others) > len(hues):
        hues = sns.husl_palette(len(others))
    by_arm = dict(zip(others, hues, strict=False))
    return {arm: by_arm.get(controls.get(arm, arm), BASELINE) for arm in arms}


# --- curves -------------------------------------------------------------------------------------------------


def curves(measured: pd.DataFrame, colors: Colors, comparison: Comparison, metric: str) -> Figure:
    """Held-out loss and distance against compute and against time: the mean over the seeds, its interval as a band.

    Args:
        measured: what `analysis.curves` returns.
        colors: what `arm_colors` returns.
        comparison: says which arm is the baseline, and which are controls (dashed).
        metric: the name of the distance.
    """
    figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
    measures = {"heldout_loss": "held-out loss", "distance": metric}
    for row, cost in zip(figure.subplots(2, 2, sharey="col"), DRAWN, strict=True):
        for axes, (measure, name) in zip(row, measures.items(), strict=True):
            factor = cost_axis(axes, measured[cost].max(), cost)
            for arm, color in colors.items():
                curve = mean_curve(measured, arm, measure, cost)
                spent, marker = curve[cost] / factor, "o" if len(curve) <= FEW else ""
                look = {"color": color, "linestyle": line_style(arm, comparison), "marker": marker, "markersize": 4.5}
                axes.plot(spent, curve["mean"], label=arm, **look)
                if curve["low"].notna().any():
                    axes.fill_between(spent, curve["low"], curve["high"], color=color, alpha=0.2, lw=0)
            axes.set_ylabel(f"{name} (lower is better)")
    figure.axes[0].set_ylim(*window(measured, comparison.baseline))
    lines, labels = figure.axes[0].get_legend_handles_labels()
    labels = [
        f"{arm}\n(control of {comparison.controls[arm]})" if arm in comparison.controls else arm for arm in labels
    ]
    figure.legend(lines, labels, loc="outside right upper")  # beside the panels, where it can hide no line
    return figure


def line_style(arm: str, comparison: Comparison) -> str:
    """Controls are dashed."""
    return "--" if arm in comparison.controls else "-"


def window(measured: pd.DataFrame, baseline: str) -> tuple[float, float]:
    """Losses to show: what the baseline's does from a quarter of its compute on, not the height of pre-training."""
    losses = measured.dropna(subset="heldout_loss")
    base = losses[losses["arm"] == baseline]
    quarter = base.loc[base["train_flops"] >= 0.25 * base["train_flops"].max(), "heldout_loss"].max()
    return 0.97 * float(losses["heldout_loss"].min()), 1.03 * float(quarter)


def stacked(panels: Mapping[str, tuple[float, Callable[[SubFigure], None]]]) -> Figure:
    """One figure of several below each other: title (may be empty) -> height in inches, and what draws it."""
    heights = [height for height, _ in panels.values()]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    places = figure.subfigures(len(panels), 1, height_ratios=heights, hspace=0.03, squeeze=False)[:, 0]
    for place, (title, (_, draw)) in zip(places, panels.items(), strict=True):
        if title:
            place.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        draw(place)
    return figure


def against_height(arms: int) -> float:
    """Inches that `draw_against` needs for so many arms and their baseline."""
    return 1.1 + 0.32 * (arms - 1)


def draw_against(
    figure: SubFigure,
    summary: pd.DataFrame,
    table: pd.DataFrame,
    colors: Colors,
    comparison: Comparison,
    metric: str,
) -> None:
    """Every arm's change against the baseline of the same seed: a dot a seed, the mean, and its interval.

    The mean of an arm that is `FAR` from the baseline is written at the edge instead.

    Args:
        figure: to draw in.
        summary: what `analysis.summary` returns.
        table: what `analysis.trials` returns.
        colors: what `arm_colors` returns.
        comparison: says which arm is left out, as its change is 0, and which are controls (dashed).
        metric: the name of the distance.
    """
    rows = summary.set_index("arm").drop(index=comparison.baseline)
    arms = list(rows.index)
    measures = {"heldout_loss": "held-out loss", "distance": metric}
    for axes, (measure, name) in zip(figure.subplots(1, 2, sharey=True), measures.items(), strict=True):
        column = f"{measure}{AGAINST}"
        change = _percent(rows[column])
        far = too_far(_percent(rows[[f"{column}{end}" for end in ("", "_low", "_high")]]))
        for place, arm in enumerate(arms):
            if far[place]:
                edge, align = (1, "right") if change[place] > 0 else (0, "left")
                across = axes.get_yaxis_transform()
                axes.text(edge, place, f"{change[place]:+.0f} %", transform=across, ha=align, va="center")
                continue
            seeds = table.loc[table["arm"] == arm, column]
            look: dict[str, Any] = {"color": colors[arm], "linestyle": line_style(arm, comparison)}
            axes.plot(_percent(seeds), [place] * len(seeds), "o", color="0.7", markersize=4)
            axes.plot(_percent(rows.loc[arm, [f"{column}_low", f"{column}_high"]]), [place] * 2, **look)
            axes.plot(change[place], place, "D", color=colors[arm], markersize=5)
        axes.axvline(0, color="0.3", linewidth=1, linestyle=":")
        axes.set_xlabel(f"{name}, % against {comparison.baseline}")
        names = [
            f"{arm}\n(control of {comparison.controls[arm]})" if arm in comparison.controls else arm for arm in arms
        ]
        axes.set_yticks(range(len(arms)), names)
    axes.set_ylim(len(arms) - 0.5, -0.5)  # of both panels


def too_far(changes: np.ndarray) -> np.ndarray:
    """Which arms would squeeze the others, if they were drawn: bool `[arms]`.

    Args:
        changes: `[arms, 3]`: mean and ends of the interval, nan where there is none. Where the median arm is level with
            the baseline, its mean may be next to nothing, and its interval says how wide the figure is.
    """
    if not len(changes):
        return np.zeros(0, bool)
    reach = np.nanmax(np.abs(changes), axis=1)
    return reach > FAR * np.median(reach)


def _percent(shares: pd.Series | pd.DataFrame) -> np.ndarray:
    return 100 * (np.asarray(shares, float) - 1)


def cost_axis(axes: Axes, largest: float, cost: str) -> float:
    """Label the horizontal axis in a unit that fits `largest`; returns what to divide by."""
    factor, unit = axis_unit(largest, cost)
    axes.set_xlabel(f"{NOUNS[cost]} ({unit})")
    axes.set_xlim(0, largest / factor * 1.02)
    return factor


def axis_unit(largest: float, cost: str) -> tuple[float, str]:
    """What to divide a cost by, and what the quotient is in, for an axis that ends at `largest`."""
    if cost == "train_seconds":
        units = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))
        return next((unit for unit in units if largest >= 3 * unit[0]), (1.0, "seconds"))
    factor, prefix = si_prefix(largest)
    return factor, f"{prefix}FLOPs" if cost == "train_flops" else f"{prefix} images".strip()


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


def masks(rows: Mapping[str, np.ndarray]) -> Figure:
    """Figure 3 of the paper: the images, then a row a mask or method.

    Args:
        rows: title -> uint8 [images, C, H, W], as many each.
    """
    count = max(map(len, rows.values()))
    figure = Figure(figsize=(WIDTH, (WIDTH / count + 0.3) * len(rows)), layout="constrained")
    for axes, (title, shown) in zip(figure.subplots(len(rows), 1, squeeze=False).ravel(), rows.items(), strict=True):
        show(axes, tile(shown, columns=len(shown)))
        axes.set_title(title)
    return figure


def seen(images: np.ndarray, kept: np.ndarray | None, factor: int, faded: bool) -> np.ndarray:
    """What a network sees of images: removed patches are in one pale tint, coarse tokens averaged.

    Args:
        images: uint8 [n, C, H, W].
        kept: bool [n, rows, columns] on the token grid, false where a token is removed; None: all are kept.
        factor: pixels a side that are averaged.
        faded: whether some blocks see the removed patches: these shine through the tint.

    Returns:
        uint8 [n, C, H, W], or [n, 3, H, W] with a mask.
    """
    if factor > 1:
        means = reduce(images.astype(float), "n c (h p) (w q) -> n c h w", "mean", p=factor, q=factor)
        images = means.round().astype(np.uint8).repeat(factor, axis=2).repeat(factor, axis=3)
    if kept is None:
        return images
    patch = images.shape[-1] // kept.shape[-1]
    pixels = kept.repeat(patch, axis=1).repeat(patch, axis=2)[:, None]
    tint, share = REMOVED[:, None, None], FADED if faded else 1.0
    return np.where(pixels, images, (share * tint + (1 - share) * images).round().astype(np.uint8))


def tile(images: np.ndarray, columns: int, line: int = 255) -> np.ndarray:
    """Images uint8 [n, C, H, W] as one picture uint8 [height, width, C], row by row, a line between them.

    Args:
        images: grey, RGB, or one of both with an alpha channel.
        columns: images a row.
        line: the value of all channels of the line: white, or 0, which is transparent where there is alpha.
    """
    missing = -len(images) % columns
    lined = np.pad(images, ((0, missing), (0, 0), (0, 1), (0, 1)), constant_values=line)
    lined[len(images) :] = line
    return rearrange(lined, "(row column) c h w -> (row h) (column w) c", column=columns)[:-1, :-1]


def show(axes: Axes, picture: np.ndarray) -> None:
    """Draw uint8 [H, W, C], grey or RGB, with nearest neighbours and nothing around it."""
    zoom = -(-DISPLAY_PIXELS // picture.shape[1])  # whole-number enlargement first: all pixels come out equally large
    shown = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    axes.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(False)
