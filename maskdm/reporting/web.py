"""The parts of the HTML page that its script draws, as plain numbers; and its template.

Everything here is a function of frames: no result is computed here, `analysis` does that.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from matplotlib.colors import to_hex

from maskdm.reporting import analysis, figures, search_figures
from maskdm.reporting.analysed import Analysed
from maskdm.reporting.analysis import AGAINST
from maskdm.reporting.page import LOSS, rows_of
from maskdm.runtime.units import si, si_prefix

Json = dict[str, Any]
LOSS_LABEL = "held-out loss"
DIGITS = 5  # of a number that is drawn


def render(view: Mapping[str, Any]) -> str:
    """The page of a view: whatever it holds is text, unless it has gone through `markdown`."""
    loader = PackageLoader("maskdm.reporting", "web")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    pages.filters |= {"markdown": markdown, "inline": inline, "sort_key": sort_key}
    own = {name: Markup(loader.get_source(pages, f"page.{name}")[0]) for name in ("css", "js")}
    return pages.get_template("page.html").render(**view, **own)


def markdown(text: str) -> Markup:
    """Markdown as HTML; tags in it stay text."""
    return Markup(_MARKDOWN.render(_kept_together(text)))


def inline(text: str) -> Markup:
    """A line of Markdown as HTML, without a paragraph around it."""
    return Markup(_MARKDOWN.renderInline(_kept_together(text)))


def _kept_together(text: str) -> str:
    """With no line break between a number and its per cent."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


# --- what the script draws ------------------------------------------------------------------------------------


def arms(found: Analysed) -> list[Json]:
    """Name, colour (None: that of text) and look of each arm, in the order of the report."""
    controls, baseline = found.params.controls, found.params.baseline
    return [
        {
            "name": arm,
            "color": None if arm == baseline else to_hex(color),
            "dashed": arm in controls,
            "control_of": controls.get(arm),
        }
        for arm, color in found.colors.items()
    ]


def curves(found: Analysed) -> Json:
    """Mean and interval of loss and distance of every arm over every axis.

    Returns:
        `axes`: key -> label and unit; `measures`: key, label, and `window`, the values that are shown at first;
        `lines`: arm -> measure -> axis -> `x`, `mean`, `low`, `high`, of one length.
    """
    axes, factors = {}, {}
    for cost, noun in figures.NOUNS.items():
        factors[cost], unit = figures.axis_unit(found.curves[cost].max(), cost)
        axes[cost] = {"label": noun, "unit": unit}
    window = figures.window(found.curves, found.params.baseline)
    lines = {
        arm: {
            measure: {
                cost: _columns(analysis.mean_curve(found.curves, arm, measure, cost), cost, factors[cost])
                for cost in axes
            }
            for measure in ("heldout_loss", "distance")
        }
        for arm in found.colors
    }
    measures = [
        {"key": "heldout_loss", "label": LOSS_LABEL, "window": list(map(rounded, window))},
        {"key": "distance", "label": found.metric, "window": None},
    ]
    return {"axes": axes, "measures": measures, "lines": lines}


def _columns(curve: pd.DataFrame, cost: str, factor: float) -> Json:
    values = {"x": curve[cost] / factor} | {key: curve[key] for key in ("mean", "low", "high")}
    return {key: [rounded(value) for value in column] for key, column in values.items()}


def changes(found: Analysed) -> Json:
    """Each arm's change of the held-out loss, %, as places from 0 to 100 on one axis; the baseline has none.

    Returns:
        `zero`; `ends`: the values at 0 and 100; `arms`: name -> `mean`, `low`, `high` and `seeds`, or an empty
        mapping for one too far away to be drawn.
    """
    rows = [row for row in rows_of(found.arms) if row["arm"] != found.params.baseline]
    column = f"heldout_loss{AGAINST}"
    seeds = {row["arm"]: found.trials.loc[found.trials["arm"] == row["arm"], column] for row in rows}
    far = figures.too_far(np.array([[row[f"{LOSS}{end}"] - 1 for end in ("", "_low", "_high")] for row in rows]))
    near = [row for row, away in zip(rows, far, strict=True) if not away]
    shown = [0.0, *(_percent(value) for row in near for value in (*seeds[row["arm"]], *_ends(row)))]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0

    def place(value: float) -> float | None:
        return rounded(100 * (_percent(value) - low) / span)

    drawn: Json = {row["arm"]: {} for row in rows}
    for row in near:
        own = {f"{end or 'mean'}": place(row[f"{LOSS}_{end}" if end else LOSS]) for end in ("", "low", "high")}
        drawn[row["arm"]] = own | {"seeds": [place(value) for value in seeds[row["arm"]]]}
    return {"zero": rounded(100 * -low / span), "ends": [rounded(low), rounded(high)], "arms": drawn}


def _ends(row: analysis.Row) -> list[float]:
    return [row[f"{LOSS}_{end}"] for end in ("low", "high") if math.isfinite(row[f"{LOSS}_{end}"])]


def _percent(ratio: float) -> float:
    return 100 * (ratio - 1)


def budgets(gained: pd.DataFrame, found: Analysed) -> Json:
    """Change of the held-out loss, %, against the budget: a series an arm, which looks as it does in the curves."""
    factor, prefix = si_prefix(float(gained["train_flops"].max()))
    params = found.params
    others = [arm for arm in gained["arm"].unique() if arm not in found.colors]  # of the study alone
    hues = figures.arm_colors([*found.colors, *others], params.baseline, params.controls) | dict(found.colors)
    series = [
        {
            "name": (arm := own["arm"].iloc[-1]),
            "color": to_hex(hues[arm]),
            "dashed": arm in params.controls,
            "x": [rounded(flops / factor) for flops in own["train_flops"]],
            **{
                key: [rounded(_percent(value)) for value in own[f"{LOSS}{end}"]]
                for key, end in (("mean", ""), ("low", "_low"), ("high", "_high"))
            },
        }
        for _, own in gained.groupby("series")
    ]
    return {"label": "training compute of an arm", "unit": f"{prefix}FLOPs", "series": series}


def search(trials: pd.DataFrame, train_flops: float) -> Json:
    """Each trial's loss, in the order in which they ended, and the best so far."""
    complete = trials["state"] == "complete"
    best = trials["heldout_loss"].where(complete).cummin().ffill()
    colors = {kind: to_hex(color) for kind, color in search_figures.mask_colors(trials).items()}
    points = [
        {
            "trial": int(row["trial"]),
            "loss": rounded(row["heldout_loss"]),
            "mask": row["mask"],
            "masks": row["masks"],
            "pruned": row["state"] != "complete",
        }
        for row in rows_of(trials)
    ]
    return {"points": points, "best": list(map(rounded, best)), "colors": colors, "budget": si(train_flops, "FLOPs")}


def samples(found: Analysed, uris: Mapping[tuple[str, int, float], str], real: str, shares: Sequence[float]) -> Json:
    """The grids by arm, seed and share of the budget, with the distance of the snapshot.

    Args:
        found: of the arms.
        uris: (arm, seed, share) -> data URI; some may be missing.
        real: the data URI of real images.
        shares: those of which there are grids.
    """
    judged = found.curves.dropna(subset="distance")
    steps = [{"share": share, "label": si(share * found.params.budget.train_flops, "FLOPs")} for share in shares]
    grids: Json = {}
    for (arm, seed, share), uri in uris.items():
        own = judged[(judged["arm"] == arm) & (judged["seed"] == seed)]
        place = found.params.budget.snapshots.index(share)
        entry = {"uri": uri, "distance": f"{own['distance'].iloc[place]:.4g}"}
        grids.setdefault(arm, {}).setdefault(str(seed), {})[str(share)] = entry
    return {"steps": steps, "seeds": list(found.params.seeds), "grids": grids, "real": real, "metric": found.metric}


def rounded(value: float) -> float | None:
    """A number with as many digits as a drawing needs; None: not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def sort_key(value: object) -> object:
    """What a row is sorted by in the page; None: below all others."""
    return value if not isinstance(value, float) or math.isfinite(value) else None
