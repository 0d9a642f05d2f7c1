"""What the trials of a comparison say: curves, a row a trial, and means with intervals over the seeds.

Everything here is a function of settings and records: no file is read or written, and torch is not imported.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from maskdm.config.comparison import Comparison, methods_in_words, removed_share
from maskdm.config.params import Params
from maskdm.config.study import DEFAULT, training_command
from maskdm.runtime.errors import MaskDMError
from maskdm.tracking.records import OF_SAMPLES, Machine, Record, StepTimes, distance_metric

Row = dict[str, Any]
Records = Sequence[tuple[Record, Machine | None]]  # what `records.read_records` returns

CONFIDENCE = 0.95
PERMUTATIONS = 10_000  # of `rank_agreement`
GRID = 60  # points of `means`
FLOOR = "real vs real"  # two disjoint sets of real images
MEASURES = ("heldout_loss", "distance", *OF_SAMPLES)
AGAINST = "_against_baseline"  # a measure over that of the baseline with the same seed
AGAINST_CONTROL = "_against_control"  # the same, of the arm's control
AT_TARGET = {"compute_to_target": "seeds_at_target", "budget_to_target": "seeds_at_target_by_budget"}  # who reaches it
DESCRIPTION = ("masks", "effective_mask_ratio", "mask_share", "batch_size", "lr", "positions")  # equal in all seeds
SETUP = (
    *("extractor", "input_size", "samples", "reference", "sampler", "num_inference_steps", "eta", "weights"),
    "guidance_scale",
)
EARLIER = {"guidance_scale": 1.0}  # what rows are measured with that were written before there was the key


# --- statistics ---------------------------------------------------------------------------------------------


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


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of the mean: of normal values it holds the true mean in 95 % of cases.

    Of a single value, or where one is NaN, it is (NaN, NaN). Where one is infinite, it is (minimum, infinity).
    """
    array = np.asarray(values, float)
    if len(array) < 2 or np.isnan(array).any():
        return math.nan, math.nan
    if np.isinf(array).any():
        return float(array.min()), math.inf
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean() - half), float(array.mean() + half)


def prediction_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of one further value: of normal values it holds the next one in 95 % of cases.

    It is wider than `interval`, which is of the mean: a single value has the spread of all of them. Of a single value
    it is (NaN, NaN).
    """
    array = np.asarray(values, float)
    if len(array) < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * array.std(ddof=1) * math.sqrt(1 + 1 / len(array))
    return float(array.mean() - half), float(array.mean() + half)


def rank_agreement(table: pd.DataFrame, measure: str) -> tuple[float, float]:
    """How far the seeds rank the arms alike, and how often chance does as much.

    Args:
        table: what `trials` returns.
        measure: the column that ranks.

    Returns:
        Kendall's coefficient of concordance W (1 if all seeds agree), and the share of random rankings that reach it:
        Friedman's test by permutation, as chi-squared needs more seeds than there are. NaN with one seed or arm.
    """
    ranks = table.pivot(index="seed", columns="arm", values=measure).rank(axis=1).to_numpy()
    seeds, arms = ranks.shape
    if seeds < 2 or arms < 2:
        return math.nan, math.nan

    def concordance(*ranks_by_arm: np.ndarray, axis: int) -> np.ndarray:
        totals = np.stack([of_arm.sum(axis=axis) for of_arm in ranks_by_arm])
        return 12 * totals.var(axis=0) / (seeds**2 * (arms**2 - 1))

    found = stats.permutation_test(
        ranks.T, concordance, permutation_type="samples", alternative="greater", n_resamples=PERMUTATIONS - 1, rng=0
    )
    return float(found.statistic), float(found.pvalue)


def expected_coverage(samples: int, reference: int, nearest_k: int) -> float:
    """The coverage of samples that are distributed as the real images are (arXiv 2002.09797, section 3.3).

    A real image has no sample in its ball if its `nearest_k` nearest, of samples and real images, are all real.
    """
    return 1 - math.prod((reference - i) / (reference + samples - i) for i in range(1, nearest_k + 1))


# --- trials and their records -------------------------------------------------------------------------------


def ordered_arms(comparison: Comparison) -> list[str]:
    """The arms as the settings have them, each control moved directly below its arm."""
    controls: dict[str, list[str]] = {}
    for control, arm in comparison.controls.items():
        controls.setdefault(arm, []).append(control)
    own = [arm for arm in comparison.arms if arm not in comparison.controls]
    return [name for arm in own for name in (arm, *controls.get(arm, []))]


def is_complete(name: str, params: Params, records: Records) -> bool:
    """Whether every trial of the comparison has its record."""
    known = {(record.arm, record.params.get("seed")) for record, _ in records if _belongs(record, name)}
    return known >= set(itertools.product(params.arms, params.seeds))


def find_trial(name: str, arm: str, seed: int, records: Records) -> tuple[Record, Machine | None]:
    """The record of a trial with its machine-dependent part.

    Raises:
        MaskDMError: it is not among `records`.
    """
    for record, machine in records:
        if record.arm == arm and record.params.get("seed") == seed and _belongs(record, name):
            return record, machine
    raise MaskDMError(f"{_path(name, arm)}: {arm} with seed {seed} is missing; `{training_command(name)}` trains it")


def _belongs(record: Record, name: str) -> bool:
    if name == DEFAULT:
        return record.stage == DEFAULT
    return record.stage == "study" and Path(record.key).parent == Path(name)


def _path(name: str, arm: str) -> Path:
    """The file of records that a trial belongs in."""
    return Path("records", *((DEFAULT, arm) if name == DEFAULT else ("study", name))).with_suffix(".jsonl")


def _positive(value: object, where: str) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise MaskDMError(f"{where}={value}; allowed: a positive number")
    return value


def measured_with(name: str, params: Params, records: Records, reference: Mapping[str, Any] = {}) -> Row:
    """How the samples of a comparison were drawn and compared: the keys of `SETUP`, the same in all its trials.

    Args:
        name: of the comparison.
        params: its settings.
        records: those of all its trials, and others.
        reference: `records/reference.json`, whose floor is to compare with; optional.

    Raises:
        MaskDMError: a trial has no record, or was measured in another way than the others or than the floor.
    """
    expected: Row = {key: reference[key] for key in ("extractor", "input_size") if key in reference}
    for arm, seed in itertools.product(ordered_arms(params), params.seeds):
        record, _ = find_trial(name, arm, seed, records)
        for row in record.history:
            if "heldout_loss" in row:
                continue
            for key in SETUP:
                value = row[key] if key in row else EARLIER[key]
                if value != expected.setdefault(key, value):
                    raise MaskDMError(
                        f"{_path(name, arm)}: {record.key}: {key}={value}; allowed: {expected[key]}, as in "
                        f"{'records/reference.json' if key in reference else 'the other trials'}"
                    )
    return expected


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


def curves(name: str, params: Params, records: Records, times: StepTimes) -> pd.DataFrame:
    """Every measurement of a comparison's trials.

    Returns:
        One row a measurement: comparison, arm, seed, phase, images_seen, train_flops, train_seconds (as
        `train_seconds` has them), heldout_loss or, of a snapshot, distance and `OF_SAMPLES` (the others NaN). A measure
        that no record has is no column; one that some have is NaN in the others.

    Raises:
        MaskDMError: a trial has no record, or nothing was measured, or what was is no positive number, or a phase was
            not timed.
    """
    rows = []
    for arm, seed in itertools.product(ordered_arms(params), params.seeds):
        record, _ = find_trial(name, arm, seed, records)
        where = f"{_path(name, arm)}: {record.key}"
        losses = [row for row in record.history if "heldout_loss" in row]
        if len(losses) in (0, len(record.history)):
            raise MaskDMError(f"{where}: no {'snapshot' if losses else 'held-out loss'} was measured; do it again")
        known = [0.0, *(row["train_flops"] for row in losses)], [0.0, *train_seconds(times, f"{name}/{arm}", losses)]
        for row in record.history:
            elapsed = float(np.interp(row["train_flops"], *known))  # also of snapshots: within a phase a line
            found = {"images_seen": row["images_seen"], "train_flops": row["train_flops"], "train_seconds": elapsed}
            if "heldout_loss" in row:
                found |= {
                    "phase": row["phase"],
                    "heldout_loss": _positive(row["heldout_loss"], f"{where}: heldout_loss"),
                }
            else:
                metric = distance_metric(row)
                found |= {key: row[key] for key in OF_SAMPLES if key in row}
                found |= {"distance": _positive(row[metric], f"{where}: {metric}")}
            rows.append({"comparison": name, "arm": arm, "seed": seed, **found})
    measured = [measure for measure in MEASURES if any(measure in row for row in rows)]
    columns = ["comparison", "arm", "seed", "phase", "images_seen", "train_flops", "train_seconds", *measured]
    return pd.DataFrame(rows).reindex(columns=columns)


def trials(
    name: str, params: Params, records: Records, measured: pd.DataFrame, shorter: Sequence[pd.DataFrame] = ()
) -> pd.DataFrame:
    """One row a trial: what it trained, what it ended with, and that over the baseline's of the same seed.

    `compute_to_target` and `seconds_to_target` are the cost at which the trial reached the final held-out loss of the
    baseline of its seed, as a share of what the baseline needed for it; infinity: it never did. `budget_to_target` is
    the smallest budget with which the arm ends at that loss, each budget with a schedule of its own, as a share of this
    comparison's; NaN: the arm was not trained with a smaller one.

    Args:
        name: of the comparison.
        params: its settings.
        records: those of all its trials, and others.
        measured: what `curves` returns.
        shorter: what this returned for comparisons of the same arms with less compute.

    Raises:
        MaskDMError: a trial has no record.
    """
    by_trial = dict(iter(measured.groupby(["arm", "seed"])))
    final = {key: _final(curve) for key, curve in by_trial.items()}
    earlier = pd.concat(shorter) if shorter else pd.DataFrame(columns=["arm", "seed"])
    rows = []
    for arm, seed in itertools.product(ordered_arms(params), params.seeds):
        record, machine = find_trial(name, arm, seed, records)
        own, base = (arm, seed), (params.baseline, seed)
        control = next((control for control, of in params.controls.items() if of == arm), None)
        loss = final[own]["heldout_loss"]
        row: Row = {"comparison": name, "arm": arm, "seed": seed} | _description(params, arm, record) | final[own]
        row |= {f"{key}{AGAINST}": final[own][key] / final[base][key] for key in ("heldout_loss", "distance")}
        row[f"heldout_loss{AGAINST_CONTROL}"] = loss / final[control, seed]["heldout_loss"] if control else math.nan
        row["compute_to_target"] = _to_target(by_trial[own], by_trial[base], "train_flops")
        row["seconds_to_target"] = _to_target(by_trial[own], by_trial[base], "train_seconds")
        row |= _costs(record, machine, float(by_trial[own]["train_seconds"].max()))
        smaller = earlier[(earlier["arm"] == arm) & (earlier["seed"] == seed)]
        rows.append(row | {"budget_to_target": _budget_to_target(row, smaller, final[base]["heldout_loss"])})
    return pd.DataFrame(rows)


def _final(curve: pd.DataFrame) -> dict[str, float]:
    """The last value of each measure; NaN if the trial has none."""
    return {measure: float(curve[measure].ffill().iloc[-1]) for measure in MEASURES if measure in curve}


def _to_target(curve: pd.DataFrame, base: pd.DataFrame, cost: str) -> float:
    own, goal = (frame.dropna(subset="heldout_loss") for frame in (curve, base))
    target = goal["heldout_loss"].iloc[-1]
    needed = [compute_to_target(frame[cost], frame["heldout_loss"], target) for frame in (own, goal)]
    return needed[0] / needed[1]


def _budget_to_target(row: Row, smaller: pd.DataFrame, target: float) -> float:
    """Definition (b): a power law between the ends of trainings that differ in their budget alone."""
    if smaller.empty:
        return math.nan
    ends = pd.concat([smaller, pd.DataFrame([row])]).sort_values("train_flops")
    return math.exp(compute_to_target(np.log(ends["train_flops"]), ends["heldout_loss"], target)) / row["train_flops"]


def _description(params: Params, arm: str, record: Record) -> Row:
    """The keys of `DESCRIPTION`; what phases differ in is joined by arrows."""
    phases = params.arms[arm]
    shares = [phase.share or 0.0 for phase in phases[:-1]]
    shares.append(1 - sum(shares))
    masked = [(phase, share) for phase, share in zip(phases, shares, strict=True) if phase.shows_less]
    ratios = [removed_share(phase, params.grid, params.model.blocks) for phase, _ in masked]
    return {
        "masks": methods_in_words(phases),
        "effective_mask_ratio": " -> ".join(f"{ratio:g}" for ratio in ratios) or "0",
        "mask_share": sum(share for _, share in masked),
        "batch_size": str(record.params["batch_size"]),
        "lr": str(record.params["lr"]),
        "positions": all(phase.positions for phase in phases),
    }


def _costs(record: Record, machine: Machine | None, seconds: float) -> Row:
    return {
        "images_seen": record.summary["images_seen"],
        "train_flops": record.summary["train_flops"],
        "train_seconds": seconds,
        "images_per_second": record.summary["images_seen"] / seconds,
        "peak_memory_bytes": (machine.peak_memory_bytes if machine else None) or math.nan,
    }


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row an arm, in the order of `table`: the mean over its seeds of every measure, `<measure>_low` and `_high`.

    `seeds` counts them, `seeds_at_target` those that reach the baseline's final loss, `seeds_at_target_by_budget` those
    that end at it with a smaller budget or this one. A measure that one of the seeds lacks has no mean: over fewer
    seeds it would not compare with that of another arm.

    Args:
        table: what `trials` returns.
    """
    described = ["comparison", "arm", *DESCRIPTION]
    rows = []
    for _, group in table.groupby("arm", sort=False):
        row: Row = {key: group[key].iloc[0] for key in described}
        row |= {"seeds": len(group)}
        row |= {counted: int(np.isfinite(group[measure]).sum()) for measure, counted in AT_TARGET.items()}
        for measure in table.columns.drop([*described, "seed"]):
            low, high = interval(group[measure].tolist())
            mean = float(group[measure].mean(skipna=measure not in (*MEASURES, "budget_to_target")))
            row |= {measure: mean, f"{measure}_low": low, f"{measure}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def mean_curve(
    measured: pd.DataFrame, arm: str, measure: str, cost: str, at: Sequence[float] | None = None
) -> pd.DataFrame:
    """An arm's curve over its seeds: cost, mean, low, high.

    Args:
        measured: what `curves` returns.
        arm: the arm.
        measure: `heldout_loss` or `distance`.
        cost: `train_flops` or `train_seconds`.
        at: costs, within what all seeds reached. None: where the first seed was measured.
    """
    own = measured[measured["arm"] == arm].dropna(subset=measure)
    by_seed = [curve for _, curve in own.groupby("seed")]
    start, end = _reached(by_seed, cost)
    points = [spent for spent in by_seed[0][cost] if start <= spent <= end] if at is None else at
    rows = []
    for spent in points:
        values = [value_at(curve[cost], curve[measure], spent) for curve in by_seed]
        low, high = interval(values)
        rows.append({cost: spent, "mean": float(np.mean(values)), "low": low, "high": high})
    return pd.DataFrame(rows)


def means(measured: pd.DataFrame) -> pd.DataFrame:
    """The mean held-out loss of all arms on one grid of compute that all trials reached.

    Returns:
        One row a point of an arm: arm, tflops, heldout_loss, heldout_loss_low, heldout_loss_high, seconds (of training
        up to there).
    """
    losses = measured.dropna(subset="heldout_loss")
    start, end = _reached([curve for _, curve in losses.groupby(["arm", "seed"])], "train_flops")
    frames = []
    for arm, own in losses.groupby("arm", sort=False):
        curve = mean_curve(losses, str(arm), "heldout_loss", "train_flops", np.linspace(start, end, GRID).tolist())
        first = own[own["seed"] == own["seed"].iloc[0]]  # all seeds take the same steps
        columns = {"arm": arm, "tflops": curve["train_flops"] / 1e12, "heldout_loss": curve["mean"]}
        columns |= {f"heldout_loss_{end}": curve[end] for end in ("low", "high")}
        seconds = np.interp(curve["train_flops"], first["train_flops"], first["train_seconds"])
        frames.append(pd.DataFrame(columns).assign(seconds=seconds))
    return pd.concat(frames, ignore_index=True)


def _reached(by_trial: Sequence[pd.DataFrame], cost: str) -> tuple[float, float]:
    """The costs from and up to which all curves are known."""
    return max(curve[cost].iloc[0] for curve in by_trial), min(curve[cost].iloc[-1] for curve in by_trial)


def metrics(means_by_arm: pd.DataFrame, metric: str) -> dict[str, dict[str, float | None]]:
    """A few numbers of each arm, for `dvc metrics`; None: not known, or infinite.

    Of fidelity and diversity, density and coverage stand for all four.

    Args:
        means_by_arm: what `summary` returns.
        metric: the name of the distance.
    """
    names = {
        "heldout_loss": "heldout_loss",
        "distance": metric,
        **{measure: measure for measure in ("density", "coverage") if measure in means_by_arm},
        **{f"compute_to_target{end}": f"compute_to_target{end}" for end in ("", "_low", "_high")},
        "train_seconds": "train_seconds",
    }
    return {
        row["arm"]: {name: float(f"{row[key]:.4g}") if math.isfinite(row[key]) else None for key, name in names.items()}
        for row in means_by_arm.to_dict("records")
    }
