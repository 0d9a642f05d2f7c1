"""What recorded comparisons let one expect of an arm at another budget."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest

from maskdm.reporting.expected import Gain, as_rows, curves, expected_at, in_words, measured_gains
from maskdm.reporting.pairs import Pair
from maskdm.tracking.records import Record, write_record
from tests.tracking.test_records import MACHINE, RECORD


def gain(train_flops: float, change: float, arm: str = "crops") -> Gain:
    loss = Pair("heldout_loss", 0.1, 0.1, change, change - 0.02, change + 0.02, is_ratio=True)
    return Gain(arm, "default", "levels", "uvit", 1000, "tuned", train_flops, 4, loss, loss)


def record(root: Path, comparison: str, arm: str, seed: int, losses: tuple[float, float], budget: float) -> None:
    own: Record = copy.deepcopy(RECORD)
    history = [
        {"heldout_loss": loss, "train_flops": share * budget, "images_seen": 1, "phase": 0, "step": 1}
        for share, loss in zip((0.5, 1.0), losses, strict=True)
    ]
    params = own.params | {
        "seed": seed,
        "train_flops": budget,
        "model.name": "uvit",
        "num_parameters": 1000,
        "recipe": "tuned",
    }
    own = replace(
        own,
        stage="study",
        key=f"{comparison}/{arm}-{seed}",
        arm=arm,
        params=params,
        summary={"heldout_loss": losses[-1]},
        history=history,
    )
    write_record(root, own, replace(MACHINE, seconds=[1.0, 2.0]))


def test_gains_pair_seeds_and_come_with_an_interval(tmp_path: Path) -> None:
    for seed, base in ((1, 0.10), (2, 0.20)):
        record(tmp_path, "small", "scratch", seed, (2 * base, base), 1e12)
        record(tmp_path, "small", "crops", seed, (base, 0.8 * base), 1e12)
        record(tmp_path, "large", "scratch", seed, (2 * base, base), 4e12)
        record(tmp_path, "large", "crops", seed, (2 * base, (0.85 + 0.1 * seed / 2) * base), 4e12)
    record(tmp_path, "large", "other", 1, (0.1, 0.1), 4e12)
    found = measured_gains(tmp_path, {"scratch", "crops"}, "scratch")
    assert [(one.comparison, one.train_flops, one.seeds) for one in found] == [("small", 1e12, 2), ("large", 4e12, 2)]
    assert found[0].loss.change == pytest.approx(-0.2)
    assert found[0].compute.change == pytest.approx(-0.5), "at half of the compute it is where scratch ends"
    assert found[1].loss.change == pytest.approx(-0.075)
    assert found[1].loss.low < found[1].loss.change < found[1].loss.high
    assert measured_gains(tmp_path, {"crops"}, "block90") == []


def test_between_two_budgets_the_gain_is_linear_in_the_logarithm_and_outside_nothing_is_known() -> None:
    [curve] = curves([gain(1e12, -0.2), gain(4e12, -0.1)])
    found = expected_at(curve, 2e12)
    assert found is not None
    assert (found.change, found.low, found.high) == pytest.approx((-0.15, -0.17, -0.13))
    assert expected_at(curve, 0.9e12) is None
    assert expected_at(curve, 5e12) is None
    assert expected_at(curve, 1e12) is not None


def test_words_and_table_say_the_interval_and_what_is_not_known() -> None:
    gains = [gain(1e12, -0.2), gain(4e12, -0.1), gain(4e12, 0.01, arm="control")]
    said = in_words(gains, 2e12)
    assert "crops on levels, uvit 1 k parameters, recipe tuned: expect -15.0 % (-17.0 to -13.0 %)." in said
    assert (
        "control on levels, uvit 1 k parameters, recipe tuned: measured at 4 TFLOPs alone, so nothing is known there."
        in said
    )
    assert as_rows(gains)[0]["95 % interval"] == "-22.0 to -18.0 %"
    assert in_words([], 1e12) == []


def test_one_seed_has_no_interval() -> None:
    alone = gain(1e12, -0.2)
    alone = replace(alone, loss=replace(alone.loss, low=math.nan, high=math.nan))
    assert as_rows([alone])[0]["95 % interval"] == "one seed: none"


def test_a_target_that_no_seed_reaches_is_said_so() -> None:
    never = gain(1e12, 0.1)
    row = as_rows([replace(never, compute=replace(never.compute, change=math.inf, low=math.inf, high=math.inf))])[0]
    assert (row["compute to the baseline's"], row["its interval"]) == ("by no seed", "none")
