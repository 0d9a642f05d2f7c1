"""The report: a sentence that answers the question from the table of arms, and the page around it.

Everything here is a function of settings, records and the table: no file is read or written.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from maskdm.analysis import FLOOR, Records, Row, distance_metric, find_record
from maskdm.config import BUDGET_TOLERANCE, Params, Recipe
from maskdm.records import StepTimes
from maskdm.units import four_digits, percent, si

NOTHING = "-"  # an empty cell


# --- the answer ---------------------------------------------------------------------------------------------


def verdict(params: Params, arms: pd.DataFrame) -> str:
    """Whether masking paid, from the table of arms by plain rules.

    A masked arm paid if it reached the baseline's final held-out loss with less compute than the baseline needed,
    by more than the arms' budgets may differ. The distance agrees with that if, at equal compute, it is lower than
    the baseline's for an arm that paid and not lower for one that did not.
    """
    rows = _by_arm(arms)
    base = rows.pop(params.baseline)
    masked = [rows[name] for name, arm in params.arms.items() if name in rows and params.pretrain[arm.pretrain]]
    if not masked:
        return f"No arm but the baseline `{params.baseline}` trains with masks: there is nothing to compare."
    needed = base["compute_to_target"] - BUDGET_TOLERANCE
    paid = {row["arm"] for row in masked if row["compute_to_target"] < needed}
    clauses = "; ".join(_loss_clause(row, base) for row in masked)
    already = ""
    if needed < 1 - 2 * BUDGET_TOLERANCE:
        already = f" `{base['arm']}` itself was there at {percent(base['compute_to_target'])} and ended no better."
    return (
        f"**{_heading(paid, masked)}** `{base['arm']}`'s final held-out loss is {four_digits(base['heldout_loss'])}: "
        f"{clauses}.{already} {_distance_sentence(arms, masked, paid, base)}"
    )


def caution(params: Params, arms: pd.DataFrame) -> str:
    """What the numbers of a single run cannot show."""
    metric = distance_metric(arms)
    sentence = f"One seed ({params.seed}) an arm, hence no confidence interval: a small difference may be chance"
    if metric != "fid":
        sentence += f"; `{metric}` is a stand-in, not FID, and compares only with rows measured in the same way"
    return f"{sentence}; seconds are those of one machine."


def _heading(paid: set[str], masked: list[Row]) -> str:
    if len(paid) == len(masked):
        return "By held-out loss, masked pre-training paid at this budget."
    if not paid:
        return "By held-out loss, masked pre-training did not pay at this budget."
    return f"By held-out loss, masked pre-training paid for {len(paid)} of {len(masked)} arms at this budget."


def _loss_clause(arm: Row, base: Row) -> str:
    change = _change(arm["heldout_loss_at_equal_compute"], base["heldout_loss_at_equal_compute"])
    if math.isinf(arm["compute_to_target"]):
        return f"`{arm['arm']}` did not reach it ({change} at equal compute)"
    opposed = (arm["seconds_to_target"] < 1) != (arm["compute_to_target"] < 1)
    return (
        f"`{arm['arm']}` reached it with {percent(arm['compute_to_target'])} of `{base['arm']}`'s compute "
        f"{'but' if opposed else 'and'} {percent(arm['seconds_to_target'])} of its seconds ({change} at equal compute)"
    )


def _distance_sentence(arms: pd.DataFrame, masked: list[Row], paid: set[str], base: Row) -> str:
    metric = distance_metric(arms)
    column = f"{metric}_at_equal_compute"
    agree = [row["arm"] for row in masked if (row[column] < base[column]) == (row["arm"] in paid)]
    disagree = [row["arm"] for row in masked if row["arm"] not in agree]
    stance = "agrees" if not disagree else "disagrees"
    if agree and disagree:
        stance = f"agrees for {_listed(agree)} and disagrees for {_listed(disagree)}"
    numbers = "; ".join(
        f"`{row['arm']}` {four_digits(row[column])}, {_change(row[column], base[column])}" for row in masked
    )
    floor = four_digits(_by_arm(arms)[FLOOR][metric])
    return (
        f"The distance to real images (`{metric}` at equal compute) {stance}: "
        f"`{base['arm']}` {four_digits(base[column])}; {numbers} ({FLOOR}: {floor})."
    )


def _change(value: float, base: float) -> str:
    """`5.6 % lower`; the percentage is of `base`."""
    return f"{100 * abs(value / base - 1):.1f} % {'lower' if value < base else 'higher'}"


def _listed(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " and ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def _by_arm(arms: pd.DataFrame) -> dict[str, Row]:
    return {row["arm"]: {str(column): value for column, value in row.items()} for row in arms.to_dict("records")}


# --- Markdown -----------------------------------------------------------------------------------------------


def markdown(
    params: Params,
    recipe: Recipe,
    dataset: Row,
    records: Records,
    times: StepTimes,
    arms: pd.DataFrame,
    figures: Sequence[str],
) -> str:
    """The whole of `report.md`.

    Args:
        params: the settings.
        recipe: what `params.recipe` names.
        dataset: `data/prepared/dataset.json`.
        records: the records of all training stages.
        times: what the seconds were made from.
        arms: what `arms_table` returns.
        figures: keys of `CAPTIONS`: the figures that lie beside the report, as PNG and SVG.
    """
    metric = distance_metric(arms)
    sections = [
        f"# Does masked pre-training pay on {dataset['name']}?",
        _compared(params, recipe, dataset, records, times),
        f"## Answer\n\n{verdict(params, arms)}\n\n{caution(params, arms)}",
        f"## What each arm spent\n\n{_cost_table(arms)}",
        f"## Held-out denoising loss\n\n{_loss_table(params, arms)}",
        f"## Distance to real images\n\n{_distance_table(params, arms)}\n\n{_setup(params, arms)}",
        "## Figures\n\n" + "\n\n".join(_figure(name) for name in figures),
        f"## What the columns mean\n\n{DEFINITIONS.format(baseline=params.baseline, metric=metric)}",
    ]
    return "\n\n".join(sections) + "\n"


CAPTIONS = {
    "heldout_loss": "Held-out denoising loss against training compute. Left: the whole run, the switch from masked "
    "pre-training to fine-tuning marked. Right: where each arm reaches the baseline's final loss.",
    "heldout_loss_time": "The same against training time.",
    "distances": "Distance between samples and real images against training compute; the dashed line is the distance "
    "between two sets of real images.",
    "distances_time": "The same against training time (interpolated between the measurements of the loss).",
    "samples": "The first samples of each arm's last snapshot, with the same seeds in all arms, and held-out images.",
    "masks": "The masks of pre-training on training images; removed patches are tinted (Figure 3 of the paper).",
}

DEFINITIONS = """\
- **effective mask ratio**: the share of tokens that the mask really removes, after rounding to whole tokens or \
blocks; `->` separates phases in sequence.
- **compute**: FLOPs of training (forward, backward and the optimiser's own matrix products), pre-training counted in.
- **seconds**: steps times seconds a step. One step of every phase of all arms followed on another, again and again: \
what else ran on the machine slowed all of them alike. Reading data, measuring and saving are left out. The \
spread is how far apart the middle half of a step's shares of a round lies: a few percent on a quiet machine.
- **images/s**: over the whole arm, and within its pre-training and its fine-tuning, by these seconds.
- **held-out loss**: denoising loss of the EMA weights on all tokens of a fixed set of held-out images, with fixed \
timesteps and noise.
- **at equal compute**: the value at the largest compute that all arms reached.
- **compute to target**, **seconds to target**: where the best value so far first reaches `{baseline}`'s final value \
(log-linear between measurements), as a share of all that `{baseline}` spent. *not reached*: nowhere; `inf` in the CSV.
- **{metric}**, **kid**: Fréchet and kernel distance between features of samples and of training images; lower is \
better. **precision**, **recall**: the share of samples near real images, and of real images near samples; higher is \
better.
- **real vs real**: the floor, the same measured between two disjoint sets of real images.

In numbers: [arms.csv](arms.csv), [heldout_loss.csv](heldout_loss.csv), [distances.csv](distances.csv)."""


def _compared(params: Params, recipe: Recipe, dataset: Row, records: Records, times: StepTimes) -> str:
    model, optimisation = params.model, recipe.optimisation
    rows, columns = params.grid
    record, _ = find_record(records, "finetune", params.baseline)
    count = record.params.get("num_parameters")
    size = f", {si(count, '')} parameters" if count else ""
    shape = "x".join(map(str, dataset["shape"]))
    return f"""\
Masked pre-training followed by fine-tuning, against training from scratch at equal compute. \
`dvc repro` makes this page from `params.yaml` and the run records.

- **Data**: {dataset["name"]} ({dataset["source"]}); {dataset["train"]:,} training and {dataset["heldout"]:,} held-out \
images of {shape}; SHA-256 `{dataset["sha256"][:12]}`.
- **Network**: U-ViT, width {model.embed_dim}, {model.depth} blocks, {model.num_heads} heads, \
{model.patch_size}x{model.patch_size} patches ({rows}x{columns} tokens){size}.
- **Recipe** `{params.recipe}`: {recipe.prediction_type}, {recipe.beta_schedule} schedule with \
{recipe.num_train_timesteps} timesteps, {optimisation.optimizer}, learning rate {optimisation.lr:g}.
- **Budget**: {si(params.budget.train_flops, "FLOPs")} of training an arm, pre-training counted in.
- **Arms**: {_listed(list(params.arms))}; the baseline is `{params.baseline}`.
- **Seconds**: of steps that were timed in turn ({times.machine})."""


def _cost_table(arms: pd.DataFrame) -> str:
    table = arms[arms["arm"] != FLOOR]
    return _table(
        {
            "arm": table["arm"],
            "pre-training masks": table["pretrain_masks"],
            "effective mask ratio": [_ratios(text) for text in table["effective_mask_ratio"]],
            "share of compute": _cells(table["pretrain_share"], lambda share: percent(share) if share else NOTHING),
            "images seen": _cells(table["images_seen"], "{:,.0f}".format),
            "compute": _cells(table["train_flops"], lambda flops: si(flops, "FLOPs")),
            "seconds": _cells(table["train_seconds"], "{:,.0f}".format),
            "images/s": _cells(table["images_per_second"], "{:,.0f}".format),
            "in pre-training": _cells(table["images_per_second_pretrain"], "{:,.0f}".format),
            "in fine-tuning": _cells(table["images_per_second_finetune"], "{:,.0f}".format),
            "peak memory": _cells(table["peak_memory_bytes"], lambda size: si(size, "B")),
        }
    )


def _loss_table(params: Params, arms: pd.DataFrame) -> str:
    table = arms[arms["arm"] != FLOOR]
    return _table(
        {
            "arm": table["arm"],
            "final": _cells(table["heldout_loss"], four_digits),
            "at equal compute": _cells(table["heldout_loss_at_equal_compute"], four_digits),
            f"against {params.baseline}": _against(params, table, "heldout_loss_at_equal_compute"),
            "compute to target": _cells(table["compute_to_target"], percent),
            "seconds to target": _cells(table["seconds_to_target"], percent),
        }
    )


def _distance_table(params: Params, arms: pd.DataFrame) -> str:
    metric = distance_metric(arms)
    return _table(
        {
            "arm": arms["arm"],
            metric: _cells(arms[metric], four_digits),
            "at equal compute": _cells(arms[f"{metric}_at_equal_compute"], four_digits),
            f"against {params.baseline}": _against(params, arms, f"{metric}_at_equal_compute"),
            "compute to target": _cells(arms[f"{metric}_compute_to_target"], percent),
            **{name: _cells(arms[name], "{:.3g}".format) for name in ("kid", "precision", "recall")},
        }
    )


def _setup(params: Params, arms: pd.DataFrame) -> str:
    """How the distances were measured: a distance means nothing without it."""
    row, floor = _by_arm(arms)[params.baseline], _by_arm(arms)[FLOOR]
    eta = f", eta {row['eta']:g}" if row["sampler"] == "ddim" else ""
    return (
        f"Extractor {row['extractor']} at {row['input_size']:.0f} px; {row['samples']:,.0f} samples against "
        f"{row['reference']:,.0f} training images; {row['sampler']}, {row['num_inference_steps']:.0f} steps{eta}; "
        f"{row['weights']} weights. Floor: {floor['samples']:,.0f} against {floor['reference']:,.0f} real images."
    )


def _figure(name: str) -> str:
    return f"![{name}]({name}.png)\n\n{CAPTIONS[name]} [SVG]({name}.svg)"


def _against(params: Params, table: pd.DataFrame, column: str) -> list[str]:
    base = _by_arm(table)[params.baseline][column]
    return _cells(table[column], lambda value: NOTHING if value == base else f"{100 * (value / base - 1):+.1f} %")


def _ratios(text: str) -> str:
    return " -> ".join(percent(float(ratio)) for ratio in text.split(" -> "))


def _cells(values: pd.Series, form: Callable[[float], str]) -> list[str]:
    return [NOTHING if pd.isna(v) else "not reached" if v == math.inf else form(v) for v in values]


def _table(columns: dict[str, Any]) -> str:
    frame = pd.DataFrame(columns).replace("", NOTHING)
    align = ["left", *["right"] * (len(columns) - 1)]
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)
