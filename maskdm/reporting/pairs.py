"""Two arms or runs against each other, paired over the seeds they share; and one more seed against an arm's others."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskdm.config.study import DEFAULT
from maskdm.reporting.analysis import compute_to_target, interval, prediction_interval
from maskdm.runtime.errors import MaskDMError
from maskdm.tracking.records import OF_SAMPLES, Record, distance_metric, read_arms, read_record_at

BySeed = Mapping[int, Record]

ROUNDING = 0.01  # by how much a trial may end elsewhere on a machine that rounds otherwise


@dataclass(frozen=True)
class Pair:
    """One measure of two arms: means over the seeds they share, and the change from the second to the first."""

    measure: str
    first: float
    second: float
    change: float  # of loss and distance the mean ratio - 1; of others the mean difference
    low: float  # of the 95 % interval of the change; NaN with one seed
    high: float
    is_ratio: bool
    reached: int | None = None  # seeds that reach the other's loss; where it is not all, the means are infinite


@dataclass(frozen=True)
class Expectation:
    """One measure of a new seed, and where those of other seeds let one expect it."""

    measure: str
    value: float
    mean: float  # of the others
    low: float  # of the 95 % prediction interval for one new seed
    high: float

    @property
    def is_met(self) -> bool:
        """Whether the value lies in the interval."""
        return self.low <= self.value <= self.high


def find_runs(source: str, here: Path, root: Path) -> BySeed:
    """The records that `source` names, by seed.

    Args:
        source: an arm, `<comparison>/<arm>`, or a folder that `maskdm train` left, of one seed or of all.
        here: what a relative folder is relative to.
        root: the project.

    Raises:
        MaskDMError: there are none, or a record is damaged.
    """
    records = read_arms(root)
    if found := records.get(source) or records.get(f"{DEFAULT}/{source}"):
        return found
    folder = here / source
    paths = [folder / "record.json"] if (folder / "record.json").is_file() else sorted(folder.glob("*/record.json"))
    if paths:
        runs = [read_record_at(path) for path in paths]
        return {record.seed: record for record in runs}
    arms = [name.partition("/")[2] for name in records if name.startswith(f"{DEFAULT}/")]
    parts = sorted({name.partition("/")[0] for name in records} - {DEFAULT})
    raise MaskDMError(
        f"{source}: neither a recorded arm nor a run; allowed: {', '.join(arms) or 'none is recorded'}, "
        f"<part>/<arm> of {', '.join(parts) or 'none'}, or a folder of `maskdm train`"
    )


def compare_runs(first: BySeed, second: BySeed) -> tuple[list[int], list[Pair]]:
    """The seeds that two arms share, and every measure that all of their runs have.

    Raises:
        MaskDMError: they share no seed, or were trained on other data.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        known = "; ".join(f"seeds {', '.join(map(str, sorted(runs)))}" for runs in (first, second))
        raise MaskDMError(f"no seed in common ({known}); allowed: arms trained with the same seeds, to be paired")
    pairs = [(first[seed], second[seed]) for seed in seeds]
    if any(own.data.get("sha256") != other.data.get("sha256") for own, other in pairs):
        raise MaskDMError("they were trained on other data; allowed: two arms of one data set")
    found = [_pair(name, pairs) for name in ("heldout_loss", *_measures(pairs))]
    costs = [_to_target(own, other) for own, other in pairs]
    low, high = interval(costs)
    share = sum(costs) / len(costs)
    reached = sum(map(math.isfinite, costs))
    cost = Pair("compute_to_target", share, 1.0, share - 1, low - 1, high - 1, is_ratio=True, reached=reached)
    return seeds, [*found, cost]


def expect(published: Sequence[Record], new: Record) -> list[Expectation]:
    """Every measure of a new seed, against those of an arm's published seeds.

    Raises:
        MaskDMError: with fewer than two published seeds nothing says how far one falls from another.
    """
    if len(published) < 2:
        raise MaskDMError(f"{len(published)} published seed; allowed: two or more, which say how far seeds differ")
    names = ["heldout_loss", *_measures([(record, new) for record in published])]
    found = []
    for name in names:
        values = [record.value(name) for record in published]
        mean = sum(values) / len(values)
        found.append(Expectation(name, new.value(name), mean, *prediction_interval(values)))
    return found


def expect_again(published: Record, new: Record, is_same_kind: bool) -> list[Expectation]:
    """Every final value of a trial that was trained again with its own seed.

    Args:
        published: what was recorded of it.
        new: of now.
        is_same_kind: whether both machines round alike: then every digit must be the same. Else the held-out loss may
            differ by `ROUNDING`.
    """
    room = dict.fromkeys(published.summary, 0.0) if is_same_kind else {"heldout_loss": ROUNDING}
    ordered = sorted(room, key=lambda name: name != "heldout_loss")
    found = [(name, float(published.summary[name]), float(new.summary[name])) for name in ordered]
    return [
        Expectation(name, value, before, before - room[name] * abs(before), before + room[name] * abs(before))
        for name, before, value in found
    ]


def _measures(pairs: Sequence[tuple[Record, Record]]) -> list[str]:
    """The measures of samples that all records have."""
    records = [record for pair in pairs for record in pair]
    if not all(any(name == "fid" or name.startswith("fd_") for name in record.summary) for record in records):
        return []
    names = [distance_metric(records[0].summary), *OF_SAMPLES]
    return [name for name in names if all(name in record.summary for record in records)]


def _pair(measure: str, pairs: Sequence[tuple[Record, Record]]) -> Pair:
    values = [(own.value(measure), other.value(measure)) for own, other in pairs]
    is_ratio = measure not in OF_SAMPLES
    changes = [(own / other if other else math.inf) - 1 if is_ratio else own - other for own, other in values]
    first, second = (sum(column) / len(values) for column in zip(*values, strict=True))
    return Pair(measure, first, second, sum(changes) / len(changes), *interval(changes), is_ratio)


def _to_target(own: Record, other: Record) -> float:
    """The compute at which a run reaches the other's final held-out loss, over what the other needs for it."""
    target = _curve(other)[1][-1]
    needed = [compute_to_target(*_curve(record), target) for record in (own, other)]
    return needed[0] / needed[1]


def _curve(record: Record) -> tuple[list[float], list[float]]:
    rows = [row for row in record.history if {"heldout_loss", "train_flops"} <= row.keys()]
    if not rows:
        raise MaskDMError(f"record {record.stage}: {record.key}: no row with heldout_loss and train_flops")
    return [row["train_flops"] for row in rows], [row["heldout_loss"] for row in rows]
