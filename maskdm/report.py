"""What the records say: curves as tidy frames, the table of arms, and the sentence that answers the question.

Everything here is a function of settings and records: no file is read or written, and torch is not imported.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from maskdm.config import BUDGET_TOLERANCE, Mask, Params, Recipe, effective_mask_ratio
from maskdm.errors import MaskDMError
from maskdm.records import Machine, Record, record_path

Row = dict[str, Any]
Records = Sequence[tuple[Record, Machine | None]]  # what `records.read_records` returns

FLOOR = "real vs real"  # the row of the floor: two disjoint sets of real images of the same sizes
SETUP = ["extractor", "input_size", "samples", "reference", "sampler", "num_inference_steps", "eta", "weights"]
NOTHING = "-"  # an empty cell


# --- statistics of one curve --------------------------------------------------------------------------------


def compute_to_target(cost: npt.ArrayLike, values: npt.ArrayLike, target: float) -> float:
    """The cost at which a falling curve first reaches `target`.

    The curve is the best value so far (a running minimum), log-linear in the value between two points.
    A curve that starts at or below the target is given the cost of its first point: an upper bound.

    Args:
        cost: [points], ascending: FLOPs, seconds or any other cost.
        values: [points], positive; lower is better.
        target: positive, in the unit of `values`.

    Returns:
        A cost in the unit of `cost`; infinity if the target is never reached, NaN if the cost is unknown (NaN).
    """
    costs, best = np.asarray(cost, float), np.minimum.accumulate(np.asarray(values, float))
    reached = np.flatnonzero(best <= target)
    if not reached.size:
        return math.inf
    after = int(reached[0])
    if after == 0:
        return float(costs[0])
    drop = math.log(best[after - 1] / target) / math.log(best[after - 1] / best[after])
    return float(costs[after - 1] + drop * (costs[after] - costs[after - 1]))


def value_at(cost: npt.ArrayLike, values: npt.ArrayLike, at: float) -> float:
    """The value of a curve of positive values at one cost, log-linear between points; NaN outside the curve."""
    logs = np.interp(at, np.asarray(cost, float), np.log(np.asarray(values, float)), left=np.nan, right=np.nan)
    return float(np.exp(logs))


# --- tidy frames --------------------------------------------------------------------------------------------


def heldout_losses(params: Params, records: Records) -> pd.DataFrame:
    """The held-out denoising loss along each arm, its pre-training first.

    Returns:
        One row a measurement: arm, phase (the index over the whole arm), stage, images_seen, train_flops,
        train_seconds (cumulative over the arm; NaN where a stage was not timed), heldout_loss.

    Raises:
        MaskDMError: a record is missing, does not fit its timings, or holds a loss that is no positive number.
    """
    rows = []
    for name, arm in params.arms.items():
        before = 0.0
        for stage, key in (("pretrain", arm.pretrain), ("finetune", name)):
            record, machine = find_record(records, stage, key)
            for row, seconds in zip(record.history, _seconds(record, machine), strict=True):
                rows.append(
                    {
                        "arm": name,
                        "phase": row["phase"],
                        "stage": stage,
                        "images_seen": row["images_seen"],
                        "train_flops": row["train_flops"],
                        "train_seconds": before + seconds,
                        "heldout_loss": _positive(row, "heldout_loss", stage, key),
                    }
                )
            before += _total_seconds(record, machine)
        if not rows or rows[-1]["arm"] != name:
            raise MaskDMError(f"{_path('finetune', name)}: the arm has no measurement; allowed: at least one")
    return pd.DataFrame(rows)


def distances(params: Params, records: Records, reference: Row, losses: pd.DataFrame) -> pd.DataFrame:
    """The distance between samples and real images at each snapshot of each arm, and the floor as the last row.

    Args:
        params: the settings.
        records: the records of the stage `evaluate`.
        reference: `records/reference.json`, which holds the floor.
        losses: what `heldout_losses` returns; its seconds are interpolated at the compute of each snapshot.

    Raises:
        MaskDMError: a record is missing, or was measured in another way than the floor.
    """
    rows: list[Row] = []
    for name in params.arms:
        record, _ = find_record(records, "evaluate", name)
        curve = losses[losses["arm"] == name]
        for row in record.history:
            for setting in ("extractor", "input_size"):
                if row[setting] != reference[setting]:
                    raise MaskDMError(
                        f"{_path('evaluate', name)}: {setting}={row[setting]}; "
                        f"allowed: {reference[setting]}, as in records/reference.json"
                    )
            _positive(row, distance_metric(row), "evaluate", name)
            seconds = np.interp(row["train_flops"], [0, *curve["train_flops"]], [0, *curve["train_seconds"]])
            rows.append({"arm": name, **row, "train_seconds": seconds})
    floor = {
        "arm": FLOOR,
        **reference["floor"],
        "extractor": reference["extractor"],
        "input_size": reference["input_size"],
        "samples": reference["floor_images"] + reference["floor_training_images"],
        "reference": reference["reference_images"],
    }
    frame = pd.DataFrame([*rows, floor])
    position = ["arm", "fraction", "images_seen", "train_flops", "train_seconds"]
    return frame.reindex(columns=[*position, distance_metric(frame), "kid", "precision", "recall", *SETUP])


def distance_metric(row: Row | pd.DataFrame) -> str:
    """The name of the Fréchet distance among the keys: `fid` with Inception-v3, else `fd_<extractor>`."""
    return next(str(key) for key in row if key == "fid" or str(key).startswith("fd_"))


def find_record(records: Records, stage: str, key: str) -> tuple[Record, Machine | None]:
    """The record of a stage and key with its machine-dependent part.

    Raises:
        MaskDMError: it is not among `records`.
    """
    for record, machine in records:
        if record.stage == stage and record.key == key:
            return record, machine
    raise MaskDMError(f"{_path(stage, key)}: no such file; `dvc repro` writes it")


def _path(stage: str, key: str) -> Path:
    return record_path(Path(), stage, key)


def _seconds(record: Record, machine: Machine | None) -> list[float]:
    """Seconds of the stage at each row of its history."""
    rows = len(record.history)
    seconds: list[float] = [math.nan] * rows if machine is None else machine.seconds
    if len(seconds) != rows:
        path = _path(record.stage, record.key).with_suffix(".machine.json")
        raise MaskDMError(f"{path}: {len(seconds)} timings; allowed: {rows}, as many as the record has rows")
    return seconds


def _total_seconds(record: Record, machine: Machine | None) -> float:
    if not record.history:
        return 0.0
    return math.nan if machine is None else machine.train_seconds


def _positive(row: Row, name: str, stage: str, key: str) -> float:
    value = row[name]
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise MaskDMError(f"{_path(stage, key)}: {name}={value}; allowed: a positive number")
    return value


# --- the table of arms --------------------------------------------------------------------------------------


def arms_table(params: Params, records: Records, losses: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """One row an arm in raw numbers (NaN: not known or without meaning), and the floor as the last row.

    `*_to_target` is the cost at which the arm reached the baseline's final value, as a share of all that the
    baseline spent: infinity if it never did. `*_at_equal_compute` is the value at the largest compute that all
    arms reached.

    Args:
        params: the settings.
        records: the records of all training stages.
        losses: what `heldout_losses` returns.
        measured: what `distances` returns.
    """
    metric = distance_metric(measured)
    snapshots = measured[measured["arm"] != FLOOR]
    common_loss = float(losses.groupby("arm")["train_flops"].max().min())
    common_distance = float(snapshots.groupby("arm")["train_flops"].max().min())
    loss_base = losses[losses["arm"] == params.baseline]
    distance_base = snapshots[snapshots["arm"] == params.baseline]
    rows = []
    for name in params.arms:
        loss, distance = losses[losses["arm"] == name], snapshots[snapshots["arm"] == name]
        rows.append(
            {"arm": name}
            | _masks(params, name)
            | _costs(records, loss, params.arms[name].pretrain)
            | {
                "heldout_loss": loss["heldout_loss"].iloc[-1],
                "heldout_loss_at_equal_compute": _value_at_compute(loss, "heldout_loss", common_loss),
                "compute_to_target": _share_to_target(loss, loss_base, "train_flops", "heldout_loss"),
                "seconds_to_target": _share_to_target(loss, loss_base, "train_seconds", "heldout_loss"),
                **{column: distance[column].iloc[-1] for column in (metric, "kid", "precision", "recall")},
                f"{metric}_at_equal_compute": _value_at_compute(distance, metric, common_distance),
                f"{metric}_compute_to_target": _share_to_target(distance, distance_base, "train_flops", metric),
                **{column: distance[column].iloc[-1] for column in SETUP},
            }
        )
    floor = measured[measured["arm"] == FLOOR].iloc[0]
    return pd.DataFrame([*rows, floor.reindex(["arm", metric, "kid", "precision", "recall", *SETUP]).to_dict()])


def mask_name(mask: Mask) -> str:
    """A mask in words, with its nominal ratio where it has one."""
    if mask.strategy == "crop":
        return f"{mask.size}x{mask.size} crop"
    kind = f"{mask.block}x{mask.block} blocks" if mask.strategy == "block" else "patch-wise"
    return f"{kind}, {percent(mask.ratio)}"


def _masks(params: Params, arm: str) -> Row:
    phases = params.pretrain[params.arms[arm].pretrain]
    ratios = [effective_mask_ratio(phase.mask, params.grid) for phase in phases]
    return {
        "pretrain_masks": " -> ".join(mask_name(phase.mask) for phase in phases),
        "effective_mask_ratio": " -> ".join(f"{ratio:g}" for ratio in ratios or [0.0]),  # text: phases in sequence
        "pretrain_share": sum(phase.share for phase in phases),
    }


def _costs(records: Records, curve: pd.DataFrame, pretrain: str) -> Row:
    """Images, FLOPs, seconds, throughput and memory of one arm, all its phases together."""
    arm, last = curve["arm"].iloc[0], curve.iloc[-1]
    machines = {
        stage: machine
        for stage, (record, machine) in {
            "pretrain": find_record(records, "pretrain", pretrain),
            "finetune": find_record(records, "finetune", arm),
        }.items()
        if machine is not None and record.history
    }
    memory = [machine.peak_memory_bytes for machine in machines.values() if machine.peak_memory_bytes]
    throughput = {stage: machine.images_per_second for stage, machine in machines.items()}
    return {
        "images_seen": last["images_seen"],
        "train_flops": last["train_flops"],
        "train_seconds": last["train_seconds"],
        "images_per_second": last["images_seen"] / last["train_seconds"],
        "images_per_second_pretrain": throughput.get("pretrain"),
        "images_per_second_finetune": throughput.get("finetune"),
        "peak_memory_bytes": max(memory, default=math.nan),
    }


def _share_to_target(curve: pd.DataFrame, baseline: pd.DataFrame, cost: str, value: str) -> float:
    return compute_to_target(curve[cost], curve[value], baseline[value].iloc[-1]) / float(baseline[cost].iloc[-1])


def _value_at_compute(curve: pd.DataFrame, column: str, flops: float) -> float:
    # Whole steps end the arms a little apart, so a curve of one point may begin behind the compute that all reached.
    return value_at(curve["train_flops"], curve[column], max(flops, curve["train_flops"].iloc[0]))


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
    if _timed(arms):
        sentence += "; seconds depend on the machine and on what else ran on it"
    return f"{sentence}."


def _heading(paid: set[str], masked: list[Row]) -> str:
    if len(paid) == len(masked):
        return "Masked pre-training paid at this budget."
    if not paid:
        return "Masked pre-training did not pay at this budget."
    return f"Masked pre-training paid for {len(paid)} of {len(masked)} arms at this budget."


def _loss_clause(arm: Row, base: Row) -> str:
    change = _change(arm["heldout_loss_at_equal_compute"], base["heldout_loss_at_equal_compute"])
    if math.isinf(arm["compute_to_target"]):
        return f"`{arm['arm']}` did not reach it ({change} at equal compute)"
    cost = f"{percent(arm['compute_to_target'])} of `{base['arm']}`'s compute"
    if not math.isnan(arm["seconds_to_target"]):
        opposed = (arm["seconds_to_target"] < 1) != (arm["compute_to_target"] < 1)
        cost += f" {'but' if opposed else 'and'} {percent(arm['seconds_to_target'])} of its seconds"
    return f"`{arm['arm']}` reached it with {cost} ({change} at equal compute)"


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


def _timed(arms: pd.DataFrame) -> bool:
    return bool(arms.loc[arms["arm"] != FLOOR, "train_seconds"].notna().all())


# --- Markdown -----------------------------------------------------------------------------------------------


def si(value: float, unit: str) -> str:
    """A number with an SI prefix: `si(36e12, "FLOPs")` is `36 TFLOPs`."""
    factor, prefix = si_prefix(value)
    return f"{value / factor:.4g} {prefix}{unit}"


def si_prefix(value: float) -> tuple[float, str]:
    """The largest SI factor that is at most `value`, and its prefix."""
    prefixes = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    return next(((factor, prefix) for factor, prefix in prefixes if value >= factor), (1.0, ""))


def four_digits(value: float) -> str:
    """Four significant digits, zeros kept, so that the rows of a column line up: 0.232 is `0.2320`."""
    return f"{value:#.4g}".rstrip(".")


def percent(share: float) -> str:
    """A share as text to three digits at most: 0.875 is `87.5 %`."""
    return f"{100 * share:.3g} %"


def markdown(
    params: Params, recipe: Recipe, dataset: Row, records: Records, arms: pd.DataFrame, figures: Sequence[str]
) -> str:
    """The whole of `report.md`.

    Args:
        params: the settings.
        recipe: what `params.recipe` names.
        dataset: `data/prepared/dataset.json`.
        records: the records of all training stages.
        arms: what `arms_table` returns.
        figures: keys of `CAPTIONS`: the figures that lie beside the report, as PNG and SVG.
    """
    metric = distance_metric(arms)
    untimed = "" if _timed(arms) else "\n\nNot every stage has its `.machine.json`: what needs seconds is left out."
    sections = [
        f"# Does masked pre-training pay on {dataset['name']}?",
        _compared(params, recipe, dataset, records),
        f"## Answer\n\n{verdict(params, arms)}\n\n{caution(params, arms)}",
        f"## What each arm spent\n\n{_cost_table(arms)}{untimed}",
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
- **compute**: FLOPs of training, forward and backward, pre-training counted in.
- **images/s**: over the whole arm, and within its pre-training and its fine-tuning.
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


def _compared(params: Params, recipe: Recipe, dataset: Row, records: Records) -> str:
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
{recipe.num_train_timesteps} timesteps, learning rate {optimisation.lr:g}.
- **Budget**: {si(params.budget.train_flops, "FLOPs")} of training an arm, pre-training counted in.
- **Arms**: {_listed(list(params.arms))}; the baseline is `{params.baseline}`."""


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
