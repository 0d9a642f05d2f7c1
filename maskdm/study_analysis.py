"""What the trials of a part of the study say: a row a trial, and means with intervals over the seeds.

Everything here is a function of settings and records: no file is read or written, and torch is not imported.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from maskdm.analysis import (
    Records,
    Row,
    compute_to_target,
    distance_metric,
    find_record,
    mask_name,
    train_seconds,
    value_at,
)
from maskdm.records import Machine, Record, StepTimes
from maskdm.study import Part

CONFIDENCE = 0.95
RESAMPLES = 10_000
AGAINST = "_against_baseline"  # a measure over the baseline's with the same seed: seeds share weights, data and noise
MEASURES = ("heldout_loss", "distance", "kid", "precision", "recall")


def curves(name: str, part: Part, records: Records, times: StepTimes) -> pd.DataFrame:
    """Every measurement of a part's trials.

    Returns:
        One row a measurement: part, arm, seed, phase, images_seen, train_flops, train_seconds (as
        `analysis.train_seconds` has them), heldout_loss or, of a snapshot, distance, kid, precision and recall (the
        others NaN).

    Raises:
        MaskDMError: a trial has no record, or a phase was not timed.
    """
    rows = []
    for arm, seed in itertools.product(part.arms, part.seeds):
        record, _ = find_record(records, "study", f"{name}/{arm}-{seed}")
        losses = [row for row in record.history if "heldout_loss" in row]
        known = [0.0, *(row["train_flops"] for row in losses)], [0.0, *train_seconds(times, f"{name}/{arm}", losses)]
        for row in record.history:
            elapsed = float(np.interp(row["train_flops"], *known))  # also of snapshots: within a phase a line
            found = {"phase": row.get("phase"), "heldout_loss": row.get("heldout_loss")}
            if "heldout_loss" not in row:
                found |= {"distance": row[distance_metric(row)], **{key: row[key] for key in MEASURES[2:]}}
            position = {key: row[key] for key in ("images_seen", "train_flops")}
            rows.append({"part": name, "arm": arm, "seed": seed, **position, "train_seconds": elapsed, **found})
    columns = ["part", "arm", "seed", "phase", "images_seen", "train_flops", "train_seconds", *MEASURES]
    return pd.DataFrame(rows).reindex(columns=columns)


def trials(name: str, part: Part, records: Records, times: StepTimes) -> pd.DataFrame:
    """One row a trial: what it trained, what it ended with, and that over the baseline's of the same seed.

    `compute_to_target` and `seconds_to_target` are the cost at which the trial reached the final held-out loss of the
    baseline of its seed, as a share of what that one spent, `distance_compute_to_target` that at which it reached the
    distance; infinity: it never did.

    Raises:
        MaskDMError: a trial has no record, or a phase was not timed.
    """
    measured = curves(name, part, records, times)
    rows = []
    for arm, seed in itertools.product(part.arms, part.seeds):
        record, machine = find_record(records, "study", f"{name}/{arm}-{seed}")
        own, base = (_trial(measured, which, seed) for which in (arm, part.baseline))
        final, base_final = _final(own), _final(base)
        rows.append(
            {"part": name, "arm": arm, "seed": seed}
            | _pretraining(part, arm, record)
            | final
            | {f"{key}{AGAINST}": final[key] / base_final[key] for key in ("heldout_loss", "distance")}
            | {
                "compute_to_target": _to_target(own, base, "train_flops", "heldout_loss"),
                "seconds_to_target": _to_target(own, base, "train_seconds", "heldout_loss"),
                "distance_compute_to_target": _to_target(own, base, "train_flops", "distance"),
            }
            | _costs(record, machine, float(own["train_seconds"].max()))
        )
    return pd.DataFrame(rows)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean; of a single value, NaN; with an infinity, infinite above."""
    array = np.asarray(values, float)
    if len(array) < 2 or np.isnan(array).any():
        return math.nan, math.nan
    if np.isinf(array).any():
        return float(array.min()), math.inf
    if np.ptp(array) == 0:
        return float(array[0]), float(array[0])
    found = stats.bootstrap(
        (array,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile", rng=seed
    ).confidence_interval
    return float(found.low), float(found.high)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row an arm, in the order of `table`: the mean over its seeds of every measure, `<measure>_low` and `_high`.

    `seeds` counts them, `seeds_at_target` those that reach the baseline's final loss.

    Args:
        table: what `trials` returns.
    """
    described = ["part", "arm", "masks", "effective_mask_ratio", "share", "batch_size", "lr", "positions"]
    measures = [column for column in table.columns if column not in {*described, "seed"}]
    rows = []
    for _, group in table.groupby("arm", sort=False):
        row: Row = {key: group[key].iloc[0] for key in described} | {
            "seeds": len(group),
            "seeds_at_target": int(np.isfinite(group["compute_to_target"]).sum()),
        }
        for measure in measures:
            low, high = interval(group[measure].tolist())
            row |= {measure: float(group[measure].mean()), f"{measure}_low": low, f"{measure}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def rank_agreement(table: pd.DataFrame, measure: str) -> tuple[float, float]:
    """How far the seeds rank the arms alike, and how often chance does as much.

    Args:
        table: what `trials` returns.
        measure: the column that ranks.

    Returns:
        Kendall's coefficient of concordance W (1 if all seeds agree), and the share of random rankings that reach it:
        Friedman's test by permutation, as chi-squared needs more seeds than a study has. NaN with one seed or arm.
    """
    ranks = table.pivot(index="seed", columns="arm", values=measure).rank(axis=1).to_numpy()
    seeds, arms = ranks.shape
    if seeds < 2 or arms < 2:
        return math.nan, math.nan

    def concordance(*ranks_by_arm: np.ndarray, axis: int) -> np.ndarray:
        totals = np.stack([of_arm.sum(axis=axis) for of_arm in ranks_by_arm])
        return 12 * totals.var(axis=0) / (seeds**2 * (arms**2 - 1))

    found = stats.permutation_test(
        ranks.T, concordance, permutation_type="samples", alternative="greater", n_resamples=RESAMPLES - 1, rng=0
    )
    return float(found.statistic), float(found.pvalue)


def _trial(measured: pd.DataFrame, arm: str, seed: int) -> pd.DataFrame:
    return measured[(measured["arm"] == arm) & (measured["seed"] == seed)]


def _final(curve: pd.DataFrame) -> dict[str, float]:
    return {measure: float(curve[measure].dropna().iloc[-1]) for measure in MEASURES}


def _to_target(curve: pd.DataFrame, base: pd.DataFrame, cost: str, measure: str) -> float:
    own, goal = curve.dropna(subset=measure), base.dropna(subset=measure)
    return compute_to_target(own[cost], own[measure], goal[measure].iloc[-1]) / float(goal[cost].iloc[-1])


def _pretraining(part: Part, arm: str, record: Record) -> dict[str, Any]:
    """What the arm's masked phases are, joined by arrows where there are several."""
    phases = part.arms[arm]
    return {
        "masks": " -> ".join(mask_name(phase.mask) for phase in phases),
        "effective_mask_ratio": str(record.params["pretrain.mask.effective_ratio"]),
        "share": sum(phase.share for phase in phases),
        "batch_size": " -> ".join(str(phase.batch_size) for phase in phases),
        "lr": " -> ".join(str(phase.override.get("lr", "")) for phase in phases),
        "positions": all(phase.positions for phase in phases),
    }


def _costs(record: Record, machine: Machine | None, seconds: float) -> dict[str, float]:
    return {
        "images_seen": record.summary["images_seen"],
        "train_flops": record.summary["train_flops"],
        "train_seconds": seconds,
        "images_per_second": record.summary["images_seen"] / seconds,
        "peak_memory_bytes": (machine.peak_memory_bytes if machine else None) or math.nan,
    }


def mean_curve(measured: pd.DataFrame, arm: str, measure: str, cost: str, points: int = 60) -> pd.DataFrame:
    """An arm's curve over its seeds: cost, mean, low, high at evenly spaced costs that all seeds reached.

    Args:
        measured: what `curves` returns.
        arm: the arm.
        measure: a column of `measured`.
        cost: another one, `train_flops` or `train_seconds`.
        points: of the common axis.
    """
    own = measured[measured["arm"] == arm].dropna(subset=measure)
    by_seed = [curve for _, curve in own.groupby("seed")]
    start = max(curve[cost].iloc[0] for curve in by_seed)
    end = min(curve[cost].iloc[-1] for curve in by_seed)
    rows = []
    for spent in np.linspace(start, end, points):
        values = [value_at(curve[cost], curve[measure], spent) for curve in by_seed]
        low, high = interval(values)
        rows.append({cost: spent, "mean": float(np.mean(values)), "low": low, "high": high})
    return pd.DataFrame(rows)
