"""What the recorded comparisons let one expect of an arm at a budget: its gain over the baseline, with its interval."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.reporting.pairs import Pair, compare_runs
from maskdm.runtime.units import percent, si
from maskdm.tracking.records import read_arms

NEAR = 0.01  # budgets that differ by less are one


@dataclass(frozen=True)
class Gain:
    """What an arm gained over the baseline at one budget, by the held-out loss."""

    arm: str
    comparison: str
    data: str
    network: str
    num_parameters: int
    recipe: str
    train_flops: float  # of each of both
    seeds: int  # that both have
    loss: Pair  # held-out loss: mean ratio - 1
    compute: Pair  # compute to the baseline's final loss: its share - 1


@dataclass(frozen=True)
class Expected:
    """What the curve of gain against budget says at one budget."""

    arm: str
    data: str
    change: float  # of the held-out loss; between two budgets it is linear in the logarithm of the budget
    low: float  # of its 95 % interval
    high: float


def measured_gains(root: Path, arms: Collection[str], baseline: str) -> list[Gain]:
    """The gains of all recorded comparisons, by arm, data and network, then from the smallest budget on.

    Of comparisons that ask the same, that with most seeds is taken.

    Args:
        root: of the project.
        arms: names; others are left out.
        baseline: its name; comparisons without it are left out.

    Raises:
        MaskDMError: a file of records is damaged.
    """
    records, found = read_arms(root), dict[tuple[Any, ...], Gain]()
    for name, own in records.items():
        comparison, _, arm = name.partition("/")
        base = records.get(f"{comparison}/{baseline}", {})
        shared = own.keys() & base.keys()
        if arm == baseline or arm not in arms or not shared:
            continue
        if any(own[seed].data["sha256"] != base[seed].data["sha256"] for seed in shared):  # one was not made anew yet
            continue
        seeds, pairs = compare_runs(own, base)
        by_measure, first = {pair.measure: pair for pair in pairs}, own[seeds[0]]
        gain = Gain(
            arm,
            comparison,
            first.data["name"],
            str(first.params["model.name"]),
            int(first.params["num_parameters"]),
            str(first.params["recipe"]),
            float(first.params["train_flops"]),
            len(seeds),
            by_measure["heldout_loss"],
            by_measure["compute_to_target"],
        )
        key = (arm, first.data["sha256"], gain.num_parameters, gain.recipe, gain.train_flops)
        if key not in found or found[key].seeds < gain.seeds:
            found[key] = gain
    return [found[key] for key in sorted(found)]


def curves(gains: Sequence[Gain]) -> list[list[Gain]]:
    """The gains of each arm on the same data with the same network, from the smallest budget on."""
    by_setting: dict[tuple[Any, ...], list[Gain]] = {}
    for gain in gains:
        by_setting.setdefault((gain.arm, gain.data, gain.num_parameters, gain.recipe), []).append(gain)
    return list(by_setting.values())


def expected_at(curve: Sequence[Gain], train_flops: float) -> Expected | None:
    """What a curve says at a budget; None: it lies outside of the budgets that were measured."""
    budgets = [math.log(gain.train_flops) for gain in curve]
    at = math.log(train_flops)
    if not budgets[0] - NEAR <= at <= budgets[-1] + NEAR:
        return None
    values = [[getattr(gain.loss, end) for gain in curve] for end in ("change", "low", "high")]
    return Expected(curve[0].arm, curve[0].data, *(float(np.interp(at, budgets, each)) for each in values))


def as_rows(gains: Sequence[Gain]) -> list[dict[str, str]]:
    """A table: a row an arm and budget."""
    return [
        {
            "measured: arm": gain.arm,
            "data": gain.data,
            "network": _network(gain),
            "recipe": gain.recipe,
            "budget": si(gain.train_flops, "FLOPs"),
            "seeds": str(gain.seeds),
            "held-out loss": _change(gain.loss.change),
            "95 % interval": _interval(gain.loss.low, gain.loss.high),
            "compute to the baseline's": _compute(gain.compute),
            "its interval": _share(gain.compute.low, gain.compute.high),
        }
        for gain in gains
    ]


def in_words(gains: Sequence[Gain], train_flops: float) -> list[str]:
    """What that lets one expect at a budget: a sentence a curve, and what it does not say."""
    if not gains:
        return []
    said = []
    for curve in curves(gains):
        budgets = " to ".join(si(flops, "FLOPs") for flops in sorted({curve[0].train_flops, curve[-1].train_flops}))
        found = expected_at(curve, train_flops)
        where = f"{curve[0].arm} on {curve[0].data}, {_network(curve[0])} parameters, recipe {curve[0].recipe}"
        if found:
            said.append(f"{where}: expect {_change(found.change)} ({_interval(found.low, found.high)}).")
        else:
            said.append(f"{where}: measured at {budgets} alone, so nothing is known there.")
    return [
        f"Held-out loss against the baseline's at {si(train_flops, 'FLOPs')} an arm, by what was measured:",
        *said,
        "Other images or another network may gain more or less: that is what `dvc repro` measures.",
    ]


def _network(gain: Gain) -> str:
    return f"{gain.network} {si(gain.num_parameters, '').strip()}"


def _compute(pair: Pair) -> str:
    if pair.change < math.inf:
        return percent(1 + pair.change)
    return "not by all seeds" if pair.low < math.inf else "by no seed"


def _change(change: float) -> str:
    return f"{100 * change:+.1f} %"


def _interval(low: float, high: float) -> str:
    return "one seed: none" if math.isnan(low) else f"{100 * low:+.1f} to {100 * high:+.1f} %"


def _share(low: float, high: float) -> str:
    if not math.isfinite(low):
        return "none"
    return f"{100 * (1 + low):.3g} to {100 * (1 + high):.3g} %" if high < math.inf else f"from {100 * (1 + low):.3g} %"
