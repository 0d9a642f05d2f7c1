"""Statistics of the study on records with known curves."""

import math
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from maskdm import figures, study_figures, study_report
from maskdm.config import MaskedPhase, PatchMask, Phase
from maskdm.errors import MaskDMError
from maskdm.records import Machine, Record, StepTimes
from maskdm.study import Part
from maskdm.study_analysis import AGAINST, curves, interval, mean_curve, rank_agreement, summary, trials

MASKED = MaskedPhase(mask=PatchMask(strategy="patch", ratio=0.75), share=0.25, batch_size=16)
PART = Part(
    question="Does it pay?",
    paper="it does.",
    train_flops=1e12,
    snapshots=(0.5, 1.0),
    heldout_points=4,
    seeds=(1, 2, 3),
    finetune=Phase(batch_size=8),
    baseline="scratch",
    arms={"scratch": (), "better": (MASKED,), "worse": (MASKED,)},
)
FACTORS = {"scratch": 1.0, "better": 0.9, "worse": 1.2}  # of the loss at every point
NOISE = {1: 1.0, 2: 1.05, 3: 0.97}  # of a seed, in all arms alike


HARDWARE = {"device": "cpu", "cpu": "a CPU", "cores": 2, "processes": 1}
# Ten steps of 1e11 FLOPs an arm: seconds are compute / 1e10.
SECONDS = {f"toy/{arm}": [10.0] for arm in PART.arms}
TIMES = StepTimes("2026-01-01T00:00:00+00:00", {"commit": None}, HARDWARE, SECONDS, spread=0.03)


def record(arm: str, seed: int) -> tuple[Record, Machine]:
    """Loss 1 / compute, times the arm's factor and the seed's noise; wall times are those of a busy machine."""
    shares = np.linspace(0.1, 1, 10)
    level = FACTORS[arm] * NOISE[seed]
    losses = [
        {"phase": 0, "step": step, "images_seen": int(1000 * s), "train_flops": 1e12 * s, "heldout_loss": level / s}
        for step, s in enumerate(shares, 1)
    ]
    others = {"kid": 0.1, "precision": 0.5, "recall": 0.2}
    snapshots = (dict(losses[4]), dict(losses[9]))
    judged = [row | {"fd_effnet_lite0": 100 * row.pop("heldout_loss"), **others} for row in snapshots]
    history = losses + judged
    seconds = [seed * row["train_flops"] / 1e9 for row in history]
    removed = 0.0 if arm == "scratch" else 0.75
    summary_of_record = {"images_seen": 1000, "train_flops": 1e12, "fd_effnet_lite0": 100 * level}
    machine = Machine("2026-01-01T00:00:00+00:00", {}, {}, {}, 100.0, 10.0, 1_000_000, seconds)
    params = {"pretrain.mask.effective_ratio": removed}
    return Record("study", f"toy/{arm}-{seed}", arm, "x", params, {}, summary_of_record, history), machine


@pytest.fixture
def records() -> list[tuple[Record, Machine]]:
    return [record(arm, seed) for arm, seed in product(PART.arms, PART.seeds)]


def test_a_trial_is_compared_with_the_baseline_of_its_seed(records: list[tuple[Record, Machine]]) -> None:
    table = trials("toy", PART, records, TIMES).set_index(["arm", "seed"])
    for arm, seed in product(PART.arms, PART.seeds):
        assert table.loc[(arm, seed), f"heldout_loss{AGAINST}"] == pytest.approx(FACTORS[arm])
        assert table.loc[(arm, seed), f"distance{AGAINST}"] == pytest.approx(FACTORS[arm])
    better = table.loc["better"]
    # Between compute 0.8 and 0.9 of the budget its loss falls log-linearly from 0.9 / 0.8 to 0.9 / 0.9 = 1, the target.
    assert better["compute_to_target"].to_numpy() == pytest.approx(0.9)
    assert better["seconds_to_target"].to_numpy() == pytest.approx(0.9)
    assert (table.loc["worse"]["compute_to_target"] == math.inf).all()


def test_no_wall_time_moves_a_number(records: list[tuple[Record, Machine]]) -> None:
    """The machine may have been busy with other things during any of the trials."""
    random = np.random.default_rng(0)
    distorted = []
    for mine, machine in records:
        slower = 10 ** random.uniform(-1, 1)
        seconds = [slower * random.uniform(0.5, 2) * elapsed for elapsed in machine.seconds]
        distorted.append(
            (mine, replace(machine, seconds=seconds, stage_seconds=100 * slower, images_per_second=slower))
        )
    for measure in (trials, curves):
        pd.testing.assert_frame_equal(measure("toy", PART, records, TIMES), measure("toy", PART, distorted, TIMES))


def test_seconds_are_steps_times_seconds_a_step(records: list[tuple[Record, Machine]]) -> None:
    slow = replace(TIMES, seconds={**SECONDS, "toy/better": [15.0]})
    table, measured = trials("toy", PART, records, slow), curves("toy", PART, records, slow)
    better = table[table["arm"] == "better"]
    assert better["train_seconds"].to_numpy() == pytest.approx(150)
    assert better["images_per_second"].to_numpy() == pytest.approx(1000 / 150)
    assert better["compute_to_target"].to_numpy() == pytest.approx(0.9)
    assert better["seconds_to_target"].to_numpy() == pytest.approx(1.5 * 0.9)
    assert (table.loc[table["arm"] != "better", "train_seconds"] == 100).all()
    judged = measured[(measured["arm"] == "better") & measured["distance"].notna()]
    assert judged["train_seconds"].to_numpy() == pytest.approx(judged["train_flops"].to_numpy() * 1.5e-10)
    assert "90 % (90 % to 90 %) of its compute and 135 %" in study_report.details(PART, summary(table))
    with pytest.raises(MaskDMError, match=r"^step time of toy/worse, phase 0: not measured; the stage"):
        trials("toy", PART, records, replace(TIMES, seconds={"toy/scratch": [10.0], "toy/better": [10.0]}))


def test_without_an_arm_that_pays_none_is_called_the_lowest(records: list[tuple[Record, Machine]]) -> None:
    table = trials("toy", PART, records, TIMES)
    column = f"heldout_loss{AGAINST}"
    table.loc[table["arm"] == "better", column] = [0.99, 1.02, 1.0]
    assert study_report.headline(PART, summary(table)) == (
        "No arm ended with a lower held-out loss than `scratch`, `worse` with a higher one; the others are level with "
        "it."
    )


def test_curves_hold_losses_and_judged_snapshots(records: list[tuple[Record, Machine]]) -> None:
    measured = curves("toy", PART, records, TIMES)
    assert len(measured) == 9 * 12
    assert measured["distance"].notna().sum() == 9 * 2
    assert measured["train_seconds"].to_numpy() == pytest.approx(measured["train_flops"].to_numpy() / 1e10)


def test_the_interval_covers_the_mean_and_shrinks_with_agreement() -> None:
    low, high = interval([1.0, 2.0, 3.0])
    assert 1.0 <= low < 2.0 < high <= 3.0
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert all(math.isnan(end) for end in interval([1.0]))
    assert interval([0.9, math.inf, 0.8]) == (0.8, math.inf)


@pytest.mark.parametrize(("seeds", "misses"), [(3, 0.24), (4, 0.20), (5, 0.17), (6, 0.14)])
def test_intervals_of_few_seeds_miss_the_truth_as_often_as_the_page_says(seeds: int, misses: float) -> None:
    random = np.random.default_rng(0)
    intervals = [interval(random.normal(size=seeds).tolist()) for _ in range(400)]
    assert np.mean([low > 0 or high < 0 for low, high in intervals]) == pytest.approx(misses, abs=0.05)
    assert f"{misses:.0%}".replace("%", " %") in study_report.HEAD


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = [low <= 0 <= high for low, high in (interval(random.normal(size=30).tolist()) for _ in range(100))]
    assert 0.86 <= np.mean(covered) <= 1.0


def test_seeds_that_rank_alike_agree_wholly_and_opposite_ones_not_at_all() -> None:
    arms = ["a", "b", "c"]
    alike = pd.DataFrame([{"arm": arm, "seed": s, "x": place + s} for s in (1, 2) for place, arm in enumerate(arms)])
    opposed = pd.DataFrame([{"arm": arm, "seed": s, "x": place * s} for s in (1, -1) for place, arm in enumerate(arms)])
    # Of the 3! rankings of the second seed one is that of the first, and every one agrees at least as much as none.
    assert rank_agreement(alike, "x") == pytest.approx((1, 1 / 6))
    assert rank_agreement(opposed, "x") == pytest.approx((0, 1))
    assert all(math.isnan(found) for found in rank_agreement(alike[alike["seed"] == 1], "x"))


def test_the_agreement_of_the_seeds_is_that_of_friedmans_test() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(12, 6)) + 0.3 * np.arange(6)  # as many seeds as chi-squared is good for
    table = pd.DataFrame(values).melt(ignore_index=False, var_name="arm", value_name="x").reset_index(names="seed")
    agreement, chance = rank_agreement(table, "x")
    friedman = stats.friedmanchisquare(*values.T)
    assert agreement == pytest.approx(friedman.statistic / (12 * 5))
    assert chance == pytest.approx(friedman.pvalue, abs=0.01)


def test_the_report_says_lower_higher_and_not_reached(records: list[tuple[Record, Machine]]) -> None:
    table = trials("toy", PART, records, TIMES)
    means = summary(table)
    answer = study_report.answer("toy", PART, means, "fd_effnet_lite0", [])
    text = answer.section
    assert "The paper: it does." in text
    assert answer.in_short.startswith(
        "*Does it pay?* `better` ended with a lower held-out loss than `scratch`, `worse` with a higher one. "
        "The lowest, `better`: held-out loss 10.0 % lower"
    )
    assert "`better`: held-out loss 10.0 % lower (10.0 to 10.0), distance 10.0 % lower" in text
    at_ninety = "90 % (90 % to 90 %) of its"
    assert f"`scratch`'s final loss reached with {at_ninety} compute and {at_ninety} seconds" in text
    assert "`worse`: held-out loss 20.0 % higher" in text
    assert "`scratch`'s final loss reached with 0 of 3 seeds" in text


def test_the_report_names_the_parts_whose_seeds_agree(records: list[tuple[Record, Machine]]) -> None:
    table = trials("toy", PART, records, TIMES)
    torn = table.assign(heldout_loss=[1, 2, 3, 2, 3, 1, 3, 1, 2])  # every arm is once the first, the second, the third
    answer = study_report.agreement_answer({"sure": PART, "torn": PART}, {"sure": table, "torn": torn})
    assert answer.in_short.endswith("more alike than chance (p < 0.05) in `sure`; not in `torn`.")
    assert re.search(r"sure +\| +1 TFLOPs +\| +3 +\| +3 +\| +W = 1.00 \(p = 0.028\)", answer.section)
    assert "W = 0.00 (p = 1.000)" in answer.section
    alone = study_report.agreement_answer({"alone": PART}, {"alone": table[table["seed"] == 1]})
    assert alone.in_short.endswith("in no part; not in any other. With one seed it is not known: `alone`.")


def test_a_change_within_chance_is_not_called_one(records: list[tuple[Record, Machine]]) -> None:
    table = trials("toy", PART, records, TIMES)
    column = f"heldout_loss{AGAINST}"
    table.loc[table["arm"] == "better", column] = [0.99, 1.02, 1.0]
    assert "`better`: held-out loss unchanged within chance" in study_report.details(PART, summary(table))


def test_every_figure_can_be_drawn(records: list[tuple[Record, Machine]]) -> None:
    table, measured = trials("toy", PART, records, TIMES), curves("toy", PART, records, TIMES)
    with figures.style():
        dots = study_figures.against_baseline(summary(table), table, "scratch")
        lines = study_figures.mean_curves(measured, "scratch")
    assert [label.get_text() for label in dots.axes[0].get_yticklabels()] == ["better", "worse"]
    assert [len(axes.lines) for axes in lines.axes] == [3, 3, 3, 3]  # two measures against two costs


def test_an_arm_far_from_the_others_is_written_at_the_edge_and_squeezes_none() -> None:
    change = f"heldout_loss{AGAINST}"
    table = pd.DataFrame({"arm": ["scratch", "near", "same", "far"], change: [1.0, 1.01, 0.99, 1.57]})
    table[f"distance{AGAINST}"] = [1.0, 1.02, 0.98, 1.03]
    means = table.assign(
        **{f"{column}_{end}": table[column] for column in table.columns[1:] for end in ("low", "high")}
    )
    with figures.style():
        loss, distance = study_figures.against_baseline(means, table, "scratch").axes
    assert [text.get_text() for text in loss.texts] == ["+57 %"]
    assert max(abs(limit) for limit in loss.get_xlim()) < 2
    assert not distance.texts


def test_a_mean_curve_is_the_mean_of_its_seeds_at_equal_cost(records: list[tuple[Record, Machine]]) -> None:
    measured = curves("toy", PART, records, TIMES)
    mean = sum(NOISE.values()) / 3
    for cost, budget in (("train_flops", 1e12), ("train_seconds", 100.0)):
        curve = mean_curve(measured, "better", "heldout_loss", cost)
        assert curve[cost].iloc[[0, -1]].tolist() == pytest.approx([0.1 * budget, budget])
        assert curve["mean"].iloc[[0, -1]].tolist() == pytest.approx([0.9 * mean / 0.1, 0.9 * mean])
        assert curve["low"].iloc[-1] <= curve["mean"].iloc[-1] <= curve["high"].iloc[-1]


def test_the_swiss_rolls_looks_are_compared_at_equal_steps_and_at_equal_compute() -> None:
    rows = [
        ("pretrained", 10, 15.0, 0.2),
        ("pretrained", 20, 25.0, 0.1),
        ("scratch", 10, 10.0, 0.8),
        ("scratch", 15, 15.1, 0.5),
        ("scratch", 20, 20.0, 0.4),
        ("scratch", 25, 25.1, 0.2),
        ("real vs real", None, None, 0.01),
    ]
    measured = pd.DataFrame(rows, columns=["arm", "step", "train_flops", "sliced_wasserstein"]).assign(seed=0)
    text = study_report.swiss_roll_answer(measured.astype({"step": "Int64"})).section
    assert "25 % of scratch's at equal steps, and 50 % at equal compute" in text
    assert re.search(r"10 +\| +0.200 .*\| +0.800 .*\| +0.500 ", text)


def test_throughput_is_said_of_masked_steps_against_dense_ones() -> None:
    columns = ["arm", "effective_mask_ratio", "batch_size", "images_per_second", "tokens_per_second", "of_flop_ideal"]
    rows = [
        ("scratch", 0.0, 32, 100.0, 6400.0, 1.04),
        ("a", 0.5, 64, 200.0, 6400.0, 0.9),
        ("b", 0.9, 256, 800.0, 5e3, 1.0),
    ]
    answer = study_report.throughput_answer(pd.DataFrame(rows, columns=columns).assign(memory_bytes=[1e8, 1.1e8, 8e7]))
    assert (
        "Masked steps reach 90 % to 100 % of the images/s that their FLOPs promise, in 80 % to 110 %" in answer.in_short
    )
