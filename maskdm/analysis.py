"""What the records say: curves as tidy frames, and the table of arms.

Everything here is a function of settings and records: no file is read or written, and torch is not imported.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from maskdm.config import Mask, Params, effective_mask_ratio
from maskdm.errors import MaskDMError
from maskdm.records import Machine, Record, StepTimes, record_path
from maskdm.units import percent

Row = dict[str, Any]
Records = Sequence[tuple[Record, Machine | None]]  # what `records.read_records` returns

FLOOR = "real vs real"  # the row of the floor: two disjoint sets of real images of the same sizes
SETUP = ["extractor", "input_size", "samples", "reference", "sampler", "num_inference_steps", "eta", "weights"]


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
        A cost in the unit of `cost`; infinity if the target is never reached.
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


def train_seconds(times: StepTimes, arm: str, history: Sequence[Row]) -> list[float]:
    """Seconds of training at each row of an arm's history: steps times seconds a step, earlier phases counted in.

    Wall times stay out: the machine may have been busier while one arm trained than while another did.

    Args:
        times: of every phase.
        arm: what `times` calls it.
        history: rows of training, all phases in sequence; the last row of a phase is at its last step.

    Raises:
        MaskDMError: a phase was not timed.
    """
    spent: dict[int, float] = {}  # by phase
    seconds = []
    for row in history:
        spent[row["phase"]] = row["step"] * times.of(arm, row["phase"])
        seconds.append(sum(spent.values()))
    return seconds


def heldout_losses(params: Params, records: Records, times: StepTimes) -> pd.DataFrame:
    """The held-out denoising loss along each arm, its pre-training first.

    Returns:
        One row a measurement: arm, phase (the index over the whole arm), stage, images_seen, train_flops,
        train_seconds (over the arm so far, as `train_seconds` has them), heldout_loss.

    Raises:
        MaskDMError: a record is missing or holds a loss that is no positive number, or a phase was not timed.
    """
    rows: list[Row] = []
    for name, arm in params.arms.items():
        keys = {"pretrain": arm.pretrain, "finetune": name}
        history = [(stage, row) for stage in keys for row in find_record(records, stage, keys[stage])[0].history]
        if not history:
            raise MaskDMError(f"{_path('finetune', name)}: the arm has no measurement; allowed: at least one")
        seconds = train_seconds(times, name, [row for _, row in history])
        rows += [
            {
                "arm": name,
                "phase": row["phase"],
                "stage": stage,
                "images_seen": row["images_seen"],
                "train_flops": row["train_flops"],
                "train_seconds": elapsed,
                "heldout_loss": _positive(row, "heldout_loss", stage, keys[stage]),
            }
            for (stage, row), elapsed in zip(history, seconds, strict=True)
        ]
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
        return f"{mask.crop}x{mask.crop} crop"
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
    ends = curve.groupby("stage", sort=False)[["images_seen", "train_seconds"]].last()
    own = ends - ends.shift(fill_value=0)  # of each stage alone
    images_per_second = own["images_seen"] / own["train_seconds"]
    stages = [find_record(records, stage, key) for stage, key in (("pretrain", pretrain), ("finetune", arm))]
    memory = [machine.peak_memory_bytes for record, machine in stages if machine is not None and record.history]
    return {
        "images_seen": last["images_seen"],
        "train_flops": last["train_flops"],
        "train_seconds": last["train_seconds"],
        "images_per_second": last["images_seen"] / last["train_seconds"],
        "images_per_second_pretrain": images_per_second.get("pretrain"),
        "images_per_second_finetune": images_per_second.get("finetune"),
        "peak_memory_bytes": max(filter(None, memory), default=math.nan),
    }


def _share_to_target(curve: pd.DataFrame, baseline: pd.DataFrame, cost: str, value: str) -> float:
    return compute_to_target(curve[cost], curve[value], baseline[value].iloc[-1]) / float(baseline[cost].iloc[-1])


def _value_at_compute(curve: pd.DataFrame, column: str, flops: float) -> float:
    # Whole steps end the arms a little apart, so a curve of one point may begin behind the compute that all reached.
    return value_at(curve["train_flops"], curve[column], max(flops, curve["train_flops"].iloc[0]))
