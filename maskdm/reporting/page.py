"""What the pages say of a comparison: the answer in a sentence by plain rules, its tables, and the default's page.

Everything here is a function of settings, records and frames: no file is read or written.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from maskdm.config.comparison import Comparison, Phase, method_in_words
from maskdm.config.masks import mask_name
from maskdm.config.method import Group
from maskdm.config.objective import objective_name
from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.reporting.analysed import Analysed
from maskdm.reporting.analysis import (
    AGAINST,
    AGAINST_CONTROL,
    AT_TARGET,
    FLOOR,
    Row,
    expected_coverage,
    ordered_arms,
)
from maskdm.runtime.units import four_digits, percent, si
from maskdm.tracking.records import OF_SAMPLES, StepTimes

NOTHING = "-"  # an empty cell
TABLES = ("arms.csv", "trials.csv", "means.csv")
LOSS, DISTANCE = f"heldout_loss{AGAINST}", f"distance{AGAINST}"
CAPTIONS = {
    "curves": "Held-out loss and distance against what training cost: the mean over the seeds, its interval as a band."
    "{controls} A band also holds what a seed does to all arms alike; the change against `{baseline}` leaves it out.",
    "against": "Change against `{baseline}` of the same seed, at equal compute: a dot a seed, the mean, its interval.",
    "samples": "The first samples of each arm's last snapshot, with the same noise in all arms, and held-out images.",
    "masks": "What the network sees of training images (Figure 3 of the paper): removed patches are tinted, and faded "
    "where some of its blocks see them.",
}
DEFINITIONS = """\
## What the numbers mean

- **compute**: FLOPs of training (forward, backward, the optimizer's matrix products), all phases counted in.
- **compute to the baseline's loss**: where the lowest held-out loss so far first reaches the baseline's final one \
(log-linear between measurements), as a share of the compute at which the baseline does; the same for **seconds**. \
*2 of 5 seeds*: the others never reach it.
{budget}- **against**: at equal compute, at the end of training, over the baseline **with the same seed**: the same \
first weights, order of images and noise.
- **intervals**: 95 % Student's t intervals of the mean over the seeds. They assume normal differences. "Lower" and \
"higher" are said where the interval leaves out zero: of arms that do not differ, 5 % are called different. The lowest \
of several arms is in part lucky.
{control}- **held-out loss**: denoising loss of the EMA weights on all tokens of fixed held-out images with fixed noise.
- **{metric}**, **kid**: Fréchet and kernel distance between features of samples and of training images; lower is \
better{stand_in}. **precision**: share of samples near real images; **recall**: share of real images near samples; \
higher is better.{density}{nearest}
- **removed**: the share of tokens that the masks really remove, after rounding to whole tokens or blocks; `->` \
separates phases.
- **seconds**: steps times seconds a step, without reading data, measuring and saving. One step of every phase of all \
arms followed on another, again and again: what else ran slowed all of them alike. Measured on: {machine}. The spread \
is how far apart the middle half of a step's shares of a round lies: a few percent on a quiet machine.
- **measured with**: {setup}."""
BUDGET = """\
- **budget to the baseline's loss**: the smallest budget with which the arm ends at that loss, each budget with a \
learning-rate schedule of its own (a power law between the budgets that were trained). It is what a user saves. On the \
curve the arm is read before its learning rate falls, so that it seems to need more.
"""
CONTROL = """\
- **control**: an arm without masks, in all else as its arm: steps, tokens a step, learning rates.
"""
DENSITY = """\
 **density**: to how many real images a sample is near, over the same for a real image. It is 1 where both are \
distributed alike, and can be more. **coverage**: share of real images that have a sample near them. As many samples \
as here reach {coverage} where both are distributed alike. Near a real image is what is closer than the farthest of \
its {nearest_k} nearest real ones; higher is better for both.\
"""
NEAREST = """\
 **nearest**: how far samples are from the real image nearest to each, over the radius of what is near a real image. \
Samples that were learnt by heart have 0; real images that were held out have what the floor says.\
"""


@dataclass(frozen=True)
class Answer:
    """What a page says to one question."""

    in_short: str  # a line for the top of the page
    section: str


@dataclass(frozen=True)
class Column:
    """A column of a table: what its cells say, and what its rows are sorted by."""

    title: str
    cells: list[str]
    values: list[Any]  # numbers, or text; NaN or infinity: neither first nor last, but below all others


def answer(question: str, found: str, section: Sequence[str]) -> Answer:
    """An answer from its sentence and the blocks below it."""
    return Answer(f"*{question}* {found}", section_of(question, found, section))


def section_of(question: str, found: str, section: Sequence[str]) -> str:
    """The answer at length."""
    return "\n\n".join([f"## {question}", f"**{found}**", *section])


# --- the answer ---------------------------------------------------------------------------------------------


def headline(params: Params, summary: pd.DataFrame, dataset: str) -> str:
    """What the best arm saves, and what its control says to that."""
    rows = rows_of(summary)
    where = f"On {dataset} at {si(params.budget.train_flops, 'FLOPs')}"
    best, arms = best_arm(params, summary), _rivals(params, rows)
    if best is None:
        return f"{where} there is no arm to compare with `{params.baseline}`."
    control = _control_of(params, summary, best)
    clause = _control_clause(best, control) if control else ""
    return f"{where} {_claim(best, params.baseline, alone=len(arms) == 1)}{clause}."


def best_arm(params: Params, summary: pd.DataFrame) -> Row | None:
    """The row of the arm that the answer is about; None if there is only the baseline.

    It has the lowest held-out loss at equal compute, of those that are clearly below the baseline if any is.
    """
    arms = _rivals(params, rows_of(summary))
    return min(arms, key=lambda row: (row[f"{LOSS}_high"] >= 1, row[LOSS]), default=None)


def _control_of(params: Params, summary: pd.DataFrame, arm: Row) -> Row | None:
    own = [name for name, controlled in params.controls.items() if controlled == arm["arm"]]
    return next((row for row in rows_of(summary) if row["arm"] in own), None)


def _rivals(params: Params, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["arm"] != params.baseline and row["arm"] not in params.controls]


def _claim(best: Row, baseline: str, alone: bool) -> str:
    """What can be said of the best arm: that it saves compute, or that it ends lower, or neither."""
    name, base = f"`{best['arm']}`", f"`{baseline}`"
    change = number(best, LOSS, seeds=True)
    if best[f"{LOSS}_high"] >= 1:
        worse = best[f"{LOSS}_low"] > 1
        if alone:
            who = f"{name} ends with a higher" if worse else f"{name} does not end with a clearly lower"
            return f"{who} held-out loss than {base}: {change}"
        who = f"no arm ends with a {'lower' if worse else 'clearly lower'}"
        return f"{who} held-out loss than {base}: the lowest, {name}, {change}"
    for measure, verb in (("budget_to_target", "ends at"), ("compute_to_target", "reaches")):
        if math.isfinite(best[measure]):
            doubt = ", which does not rule out that it saves none" if best[f"{measure}_high"] >= 1 else ""
            needed = number(best, measure, of=" of its compute", seeds=True)
            return f"{name} {verb} {base}'s final held-out loss with {needed}{doubt}"
    reached = "" if best["seeds"] == 1 else f", and reaches {base}'s with {_seeds_at_target(best)}"
    return f"{name} ends with a {'lower' if best[LOSS] < 1 else 'higher'} held-out loss than {base}: {change}{reached}"


def _control_clause(best: Row, control: Row) -> str:
    """What a control does as well is not due to the masks."""
    measure = "compute_to_target" if math.isnan(best["budget_to_target"]) else "budget_to_target"
    if best[f"{LOSS}_high"] >= 1 or math.isinf(best[measure]) or math.isnan(control[measure]):
        return f"; its control without masks {number(control, LOSS)}"
    unsure = best[f"heldout_loss{AGAINST_CONTROL}_high"] >= 1
    word = "gets there with" if math.isinf(control[measure]) else "needs"
    reason = ", so that masks need not be the reason" if unsure else ""
    return f"; its control without masks {word} {number(control, measure)}{reason}"


def standing(summary: pd.DataFrame, baseline: str, metric: str) -> str:
    """Which arms are clearly better or worse than the baseline, by either measure."""
    rows = [row for row in rows_of(summary) if row["arm"] != baseline]
    if not rows:
        return "No other arm was trained."
    if any(row["seeds"] == 1 for row in rows):
        return "One seed an arm: there are no intervals, and a small difference may be chance."
    lines = []
    for measure, name in ((LOSS, "Held-out loss"), (DISTANCE, metric)):
        lower = [row["arm"] for row in rows if row[f"{measure}_high"] < 1]
        higher = [row["arm"] for row in rows if row[f"{measure}_low"] > 1]
        level = [row["arm"] for row in rows if row["arm"] not in {*lower, *higher}]
        named = {"lower": lower, "higher": higher, "not clearly different": level}
        found = "; ".join(f"{word} for {listed(arms)}" for word, arms in named.items() if arms)
        lines.append(f"- {name} at equal compute, against `{baseline}`: {found}.")
    return "\n".join(lines)


# --- tables -------------------------------------------------------------------------------------------------


def result_columns(comparison: Comparison, summary: pd.DataFrame, metric: str) -> list[Column]:
    """What each arm comes to against the baseline."""
    rows, base = rows_of(summary), comparison.baseline

    def column(title: str, measure: str) -> Column:
        cells = [NOTHING if row["arm"] == base else number(row, measure) for row in rows]
        return Column(title, cells, [row[measure] for row in rows])

    budgets = column(f"budget to {base}'s loss", "budget_to_target")
    return [
        _arms(comparison, rows),
        column(f"compute to {base}'s loss", "compute_to_target"),
        *([budgets] if summary["budget_to_target"].notna().any() else []),
        column(f"loss against {base}", LOSS),
        column(f"{metric} against {base}", DISTANCE),
        column(f"seconds to {base}'s loss", "seconds_to_target"),
    ]


def best_columns(asked: Sequence[tuple[str, Analysed]]) -> list[Column]:
    """A row a question: the arm that its answer is about, against the baseline, and what its control ends with."""
    rows = [(question, found, best_arm(found.params, found.arms)) for question, found in asked]
    answered = [(question, found, row) for question, found, row in rows if row is not None]
    best = [row for _, _, row in answered]
    controls = [_control_of(found.params, found.arms, row) for _, found, row in answered]

    def column(title: str, measure: str) -> Column:
        return Column(title, [number(row, measure) for row in best], [row[measure] for row in best])

    budgets = column("budget to its loss", "budget_to_target")
    return [
        _texts("question", [question for question, _, _ in answered]),
        _texts("images", [found.images for _, found, _ in answered]),
        _texts("compute an arm", [si(found.params.budget.train_flops, "FLOPs") for _, found, _ in answered]),
        _texts("best arm", [f"`{row['arm']}`" for row in best]),
        column("compute to the baseline's loss", "compute_to_target"),
        *([budgets] if any(not math.isnan(row["budget_to_target"]) for row in best) else []),
        column("loss against the baseline", LOSS),
        _texts("control against the baseline", [NOTHING if row is None else number(row, LOSS) for row in controls]),
        _texts("seeds", [str(row["seeds"]) for row in best]),
    ]


def details_columns(comparison: Comparison, summary: pd.DataFrame, metric: str) -> list[Column]:
    """What each arm trained, what that cost, and what it ended with: means over the seeds."""
    rows = rows_of(summary)

    def numbers(title: str, key: str, form: Callable[[float], str]) -> Column:
        values = [row[key] for row in rows]
        return Column(title, [NOTHING if pd.isna(value) else form(value) for value in values], values)

    return [
        _arms(comparison, rows),
        _texts("masks", [row["masks"] or NOTHING for row in rows]),
        _texts("removed", [_ratios(row["effective_mask_ratio"]) for row in rows]),
        numbers("share of compute", "mask_share", percent),
        _texts("batch", [row["batch_size"] for row in rows]),
        _texts("learning rate", [row["lr"] for row in rows]),
        numbers("images seen", "images_seen", "{:,.0f}".format),
        numbers("seconds", "train_seconds", "{:,.0f}".format),
        numbers("images/s", "images_per_second", "{:,.0f}".format),
        numbers("peak memory", "peak_memory_bytes", lambda size: si(size, "B")),
        numbers("held-out loss", "heldout_loss", four_digits),
        numbers(metric, "distance", four_digits),
        *(numbers(name, name, "{:.3g}".format) for name in OF_SAMPLES if name in summary),
    ]


def _texts(title: str, cells: list[str]) -> Column:
    return Column(title, cells, cells)


def as_table(columns: Sequence[Column]) -> str:
    """Columns in Markdown."""
    return table({column.title: column.cells for column in columns})


def table(columns: Mapping[str, Sequence[str]]) -> str:
    """A table in Markdown, the first column on the left."""
    align = ["left", *["right"] * (len(columns) - 1)]
    return pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True, colalign=align)


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """The rows of a table as dictionaries."""
    return [{str(column): value for column, value in row.items()} for row in frame.to_dict("records")]


def listed(names: Sequence[str], nothing: str = "no arm") -> str:
    """Names as code, with commas."""
    return ", ".join(f"`{name}`" for name in names) or nothing


def _arms(comparison: Comparison, rows: list[Row]) -> Column:
    names = [row["arm"] for row in rows]
    return Column("arm", [_marked(arm, comparison) for arm in names], names)


def _marked(arm: str, comparison: Comparison) -> str:
    return f"{arm} (control of `{comparison.controls[arm]}`)" if arm in comparison.controls else arm


def number(row: Row, measure: str, of: str = "", seeds: bool = False) -> str:
    """A mean over seeds with its interval: `69 % (66 to 72 %)`; of a measure against the baseline the change; NaN: `-`.

    Args:
        row: of `analysis.summary`.
        measure: a column that is a share.
        of: what it is a share of.
        seeds: whether to say how many there are.
    """
    if math.isnan(row[measure]):
        return NOTHING
    text, inside = mean_and_interval(row, measure, seeds)
    if math.isinf(row[measure]):
        return text
    return f"{text}{of} ({inside})" if inside else f"{text}{of}"


def p_value(p: float) -> str:
    """`p = 0.080`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def mean_and_interval(row: Row, measure: str, seeds: bool = False) -> tuple[str, str]:
    """The two parts of `number`: `69 %` and `66 to 72 %`; of a mean that is infinite how many seeds get there."""
    value, low, high = (row[f"{measure}{end}"] for end in ("", "_low", "_high"))
    if math.isinf(value):
        return _seeds_at_target(row, AT_TARGET.get(measure, "seeds_at_target")), ""
    if measure in (LOSS, DISTANCE):
        text, ends = f"{_points(value)} %", f"{_points(low)} to {_points(high)} %"
    else:
        text, ends = percent(value), f"{100 * low:.3g} to {percent(high)}"
    count = f"{row['seeds']} seeds"
    if math.isnan(low):
        ends, count = "", "one seed, hence no interval"
    return text, ", ".join(filter(None, [ends, count if seeds else ""]))


def group_in_words(phase: Phase, group: Group, grid: tuple[int, int]) -> str:
    """What a group of images of a phase shows: `2x2 blocks, 90 % (removed: 87.5 %)`."""
    removed = percent(1 - group.tokens(grid) / (grid[0] * grid[1]))
    if len(phase.groups) == 1:
        return f"{method_in_words(phase)} (removed: {removed})"
    shown = mask_name(group.mask) if group.mask else "whole images"
    if group.factor > 1:
        shown = f"{group.factor}x{group.factor} as one"
    low, high = group.noise
    levels = "" if high - low == 1 else f" at {100 * low:.3g} to {percent(high)} of the noise levels"
    return f"{method_in_words(phase)}: {shown}{levels} (removed: {removed})"


def _points(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}"


def _seeds_at_target(row: Row, counted: str = "seeds_at_target") -> str:
    return f"{row[counted]} of {row['seeds']} seeds"


def _ratios(text: str) -> str:
    return " -> ".join(percent(float(ratio)) for ratio in text.split(" -> "))


# --- pages --------------------------------------------------------------------------------------------------


def comparison_blocks(params: Params, summary: pd.DataFrame, metric: str, figures: Sequence[str]) -> list[str]:
    """The blocks below the answer to a comparison: its table, what is clear, its figures, and the details.

    Args:
        params: the settings of the comparison.
        summary: what `analysis.summary` returns.
        metric: the name of the distance.
        figures: paths of the figures from the page, without the suffix; the last part of a name has a caption.
    """
    return [
        as_table(result_columns(params, summary, metric)),
        standing(summary, params.baseline, metric),
        *(figure(path, params) for path in figures),
        as_table(details_columns(params, summary, metric)),
    ]


def figure(path: str, comparison: Comparison) -> str:
    """A figure with its caption."""
    stem = path.rpartition("/")[2]
    return f"![{stem}]({path}.png)\n\n{caption(stem.rpartition('_')[2], comparison)}"


def caption(name: str, comparison: Comparison) -> str:
    """What a figure of `CAPTIONS` shows."""
    controls = " Controls are dashed." if comparison.controls else ""
    return CAPTIONS[name].format(baseline=comparison.baseline, controls=controls)


def definitions(params: Params, metric: str, times: StepTimes, measured_with: Row, measures: Iterable[str]) -> str:
    """What the numbers mean, once a page.

    Args:
        params: the settings of a comparison of the page.
        metric: the name of the distance.
        times: what the seconds were made from.
        measured_with: what `analysis.measured_with` returns.
        measures: what the page shows, as `shown` finds it.
    """
    return DEFINITIONS.format(
        metric=metric,
        stand_in="" if metric == "fid" else f" (`{metric}` is a stand-in, not FID)",
        density=_density(params.evaluation.nearest_k, measured_with) if "density" in measures else "",
        nearest=NEAREST if "nearest" in measures else "",
        machine=times.machine,
        setup=setup(measured_with),
        control=CONTROL if params.controls else "",
        budget=BUDGET if "budget_to_target" in measures else "",
    )


def shown(summary: pd.DataFrame) -> set[str]:
    """The columns that have a value: there may be no density, or no smaller budget."""
    return {str(column) for column in summary if summary[column].notna().any()}


def in_numbers(folder: str, names: Sequence[str]) -> str:
    """Links to the tables in a folder beside the page."""
    return "In numbers: " + ", ".join(f"[{name}]({folder}/{name})" for name in names) + "."


def _density(nearest_k: int, row: Row) -> str:
    """What density and coverage mean: coverage is far from 1 where samples are fewer than real images."""
    coverage = expected_coverage(row["samples"], row["reference"], nearest_k)
    return DENSITY.format(coverage=f"{coverage:.3g}", nearest_k=nearest_k)


def setup(row: Row) -> str:
    """How the distances were measured: a distance means nothing without it."""
    eta = f", eta {row['eta']:g}" if row["sampler"] == "ddim" else ""
    guidance = f", guidance scale {row['guidance_scale']:g}" if row["guidance_scale"] != 1 else ""
    return (
        f"extractor {row['extractor']} at {row['input_size']} px; {row['samples']:,} samples against "
        f"{row['reference']:,} training images; {row['sampler']}, {row['num_inference_steps']} steps{eta}{guidance}; "
        f"{row['weights']} weights"
    )


def default_page(
    params: Params,
    recipe: Recipe,
    dataset: Row,
    num_parameters: int | None,
    times: StepTimes,
    summary: pd.DataFrame,
    metric: str,
    reference: Row,
    measured_with: Row,
    figures: Sequence[str],
) -> str:
    """The whole of `report.md`.

    Args:
        params: the settings.
        recipe: what `params.recipe` names.
        dataset: `data/prepared/dataset.json`.
        num_parameters: of the network; None: not known.
        times: what the seconds were made from.
        summary: what `analysis.summary` returns.
        metric: the name of the distance.
        reference: `records/reference.json`.
        measured_with: what `analysis.measured_with` returns.
        figures: as `comparison_blocks` has them.
    """
    blocks = [
        f"# Does masked pre-training pay on {params.data.title}?",
        f"**{headline(params, summary, params.data.title)}**",
        *comparison_blocks(params, summary, metric, figures),
        floor(reference, metric, measured_with["samples"]),
        compared(params, recipe, dataset, num_parameters),
        definitions(params, metric, times, measured_with, {*shown(summary), *reference["floor"]}),
        in_numbers("default", TABLES),
    ]
    return "\n\n".join(blocks) + "\n"


def compared(params: Params, recipe: Recipe, dataset: Row, num_parameters: int | None) -> str:
    """The data, the network, the recipe, the budget and the arms, once a page."""
    model, optimisation = params.model, recipe.optimisation
    rows, columns = params.grid
    size = f", {si(num_parameters, '')} parameters" if num_parameters else ""
    return f"""\
## What was compared

`dvc repro` makes this page from `params.yaml` and the records of the trials.

- **Data**: {params.data.title} ({dataset["source"]}); {dataset["train"]:,} training and {dataset["heldout"]:,} \
held-out images of {"x".join(map(str, dataset["shape"]))}{_overlap(dataset)}; SHA-256 `{dataset["sha256"][:12]}`.
- **Network**: {model.in_words()}, {model.patch_size}x{model.patch_size} patches ({rows}x{columns} tokens){size}.
- **Recipe** `{params.recipe}`: {objective_name(recipe.objective)}, \
{optimisation.optimizer}, learning rate {optimisation.lr:g}.
- **Budget**: {si(params.budget.train_flops, "FLOPs")} of training for each arm, with each of the seeds \
{", ".join(map(str, params.seeds))}.
- **Arms**: {listed(ordered_arms(params))}; the baseline is `{params.baseline}`."""


def _overlap(dataset: Row) -> str:
    """Whether training saw held-out images. Data that were prepared before this was counted say nothing."""
    if "duplicates" not in dataset:
        return ""
    shared, left_out = dataset["duplicates"]["train_and_heldout"], dataset["duplicates"]["left_out"]
    text = f", {shared:,} training images have the pixels of a held-out one" if shared else ", no image is in both"
    return text + (f" ({left_out:,} copies were left out)" if left_out else "")


def floor(reference: Row, metric: str, samples: int) -> str:
    """What the distance is between real images, and how to read it where there are fewer of them than samples."""
    floor, images = reference["floor"], reference["floor_images"] + reference["floor_training_images"]
    others = "".join(f", {name} {floor[name]:.3g}" for name in OF_SAMPLES if name in floor)
    text = (
        f"The floor, {FLOOR}: {metric} {four_digits(floor[metric])}{others}, of {images:,} against "
        f"{reference['reference_images']:,} real images."
    )
    if images >= samples:
        return text
    return (
        f"{text} The data set has no more images outside the reference. A Fréchet distance grows as images get fewer: "
        f"the floor of {samples:,} real images would be lower."
    )
