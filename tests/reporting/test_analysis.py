"""Statistics of comparisons on records with known curves."""

import math
from dataclasses import replace
from random import Random

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from maskdm.config.comparison import Budget
from maskdm.config.params import Params
from maskdm.reporting import analysis, page
from maskdm.reporting.analysis import AGAINST, AGAINST_CONTROL, interval, rank_agreement
from maskdm.runtime.errors import MaskDMError
from maskdm.tracking.records import Machine
from tests.comparison import (
    BUDGET,
    LATER,
    NOISE,
    POINTS,
    REDUCTION,
    REFERENCE,
    SPEED,
    SPREAD,
    analysed,
    make_records,
    make_times,
    of_before,
    settings,
)

ORDER = ["scratch", "patch90", "block90", "control", "crop3"]  # the control below its arm


@pytest.fixture
def params() -> Params:
    return Params.model_validate(settings())


# --- statistics -------------------------------------------------------------------------------------------------


def test_the_target_is_interpolated_log_linearly() -> None:
    assert analysis.compute_to_target([10, 20], [4.0, 1.0], 2.0) == pytest.approx(15)


def test_a_curve_that_rises_again_counts_with_its_best_value_so_far() -> None:
    cost, values = [1, 2, 3, 4], [4.0, 1.0, 8.0, 0.25]
    assert analysis.compute_to_target(cost, values, 2.0) == pytest.approx(1.5)
    assert analysis.compute_to_target(cost, values, 0.5) == pytest.approx(3.5)  # from the best, 1, not from 8


def test_a_target_below_the_curve_is_never_reached() -> None:
    assert analysis.compute_to_target([1, 2], [4.0, 1.0], 0.9) == math.inf


def test_a_curve_that_starts_at_the_target_reaches_it_at_its_first_point() -> None:
    assert analysis.compute_to_target([3, 4], [1.0, 0.5], 1.0) == 3
    assert analysis.compute_to_target([3], [0.5], 1.0) == 3


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_lower_target_never_costs_less(values: list[float], one: float, other: float) -> None:
    cost = np.arange(1, len(values) + 1)
    assert analysis.compute_to_target(cost, values, min(one, other)) >= analysis.compute_to_target(
        cost, values, max(one, other)
    )


@given(st.lists(st.floats(0.1, 0.95), min_size=2, max_size=20), st.floats(0.001, 0.999))
def test_value_and_target_undo_each_other_on_a_falling_curve(factors: list[float], place: float) -> None:
    cost, values = np.arange(len(factors)), np.cumprod(factors)
    at = place * cost[-1]
    assert analysis.compute_to_target(cost, values, analysis.value_at(cost, values, at)) == pytest.approx(at, abs=1e-6)


def test_a_value_outside_the_curve_is_unknown() -> None:
    assert math.isnan(analysis.value_at([1, 2], [4.0, 1.0], 0.5))
    assert math.isnan(analysis.value_at([1, 2], [4.0, 1.0], 2.5))


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=8).filter(lambda values: np.std(values) > 1e-6))
def test_the_interval_is_that_of_the_t_test(values: list[float]) -> None:
    known = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((known.low, known.high), abs=1e-9)


def test_an_interval_of_one_value_is_unknown_and_one_with_an_infinity_is_open_above() -> None:
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert all(math.isnan(end) for end in interval([1.0]))
    assert all(math.isnan(end) for end in interval([1.0, math.nan, 2.0]))
    assert interval([0.9, math.inf, 0.8]) == (0.8, math.inf)


@pytest.mark.parametrize("seeds", [2, 4, 6])
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds: int) -> None:
    random = np.random.default_rng(0)
    covered = [low <= 0 <= high for low, high in (interval(random.normal(size=seeds).tolist()) for _ in range(2000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


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


@pytest.mark.parametrize(
    ("samples", "reference", "nearest_k", "expected"),
    [
        (2, 3, 1, 1 / 2),  # beside a real image there are 2 real ones and 2 samples
        (2, 3, 2, 1 - 2 / 4 * 1 / 3),
        (1000, 10_000, 3, 0.2487),
        (50_000, 50_000, 5, 1 - 2**-5),
    ],
)
def test_coverage_is_what_the_counts_allow(samples: int, reference: int, nearest_k: int, expected: float) -> None:
    assert analysis.expected_coverage(samples, reference, nearest_k) == pytest.approx(expected, abs=1e-4)


# --- curves -----------------------------------------------------------------------------------------------------


def test_curves_hold_losses_and_judged_snapshots_of_all_phases(params: Params) -> None:
    measured = analysed(params).curves
    assert measured["arm"].unique().tolist() == ORDER
    assert set(measured["comparison"]) == {"default"}
    for (arm, _), own in measured.groupby(["arm", "seed"]):
        losses, judged = own.dropna(subset="heldout_loss"), own.dropna(subset="distance")
        assert (len(losses), len(judged)) == (POINTS, 3)
        assert losses["phase"].unique().tolist() == ([0] if arm == "scratch" else [0, 1])
        assert losses["train_seconds"].to_numpy() == pytest.approx(losses["train_flops"].to_numpy() / SPEED)
        # The first snapshot lies in pre-training: its time is that of the loss curve there.
        assert judged["train_seconds"].to_numpy() == pytest.approx(judged["train_flops"].to_numpy() / SPEED)


def test_a_missing_trial_is_named(params: Params) -> None:
    records = [pair for pair in make_records(params) if pair[0].key != "crop3/2"]
    says = r"^records/default/crop3\.jsonl: crop3 with seed 2 is missing; `dvc repro` trains it$"
    with pytest.raises(MaskDMError, match=says):
        analysed(params, records)
    assert not analysis.is_complete("default", params, records)
    assert analysis.is_complete("default", params, make_records(params))
    of_a_part = make_records(params, name="part")
    assert analysis.is_complete("part", params, of_a_part)
    assert not analysis.is_complete("part", params, of_a_part[1:])
    for name in ("default", "other"):
        assert not analysis.is_complete(name, params, of_a_part)
    says = r"^records/study/other\.jsonl: scratch with seed 1 is missing; `python -m pipeline\.study other`"
    with pytest.raises(MaskDMError, match=says):
        analysis.find_trial("other", "scratch", 1, of_a_part)


def test_a_phase_that_was_not_timed_is_named(params: Params) -> None:
    times = make_times(params)
    for arm, phase, seconds in (("scratch", 0, {}), ("crop3", 1, {**times.seconds, "default/crop3": [1.0]})):
        with pytest.raises(MaskDMError, match=rf"^step time of default/{arm}, phase {phase}: not measured; the stage"):
            analysed(params, times=replace(times, seconds=seconds))


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0, None])
@pytest.mark.parametrize(("row", "name"), [(3, "heldout_loss"), (-1, "fd_effnet_lite0")])
def test_what_is_no_positive_number_is_named(params: Params, row: int, name: str, value: float | None) -> None:
    records = make_records(params)
    analysis.find_trial("default", "patch90", 3, records)[0].history[row][name] = value
    with pytest.raises(MaskDMError, match=rf"^records/default/patch90\.jsonl: patch90/3: {name}={value}; allowed"):
        analysed(params, records)


@pytest.mark.parametrize(("kept", "what"), [(slice(POINTS, None), "held-out loss"), (slice(0, POINTS), "snapshot")])
def test_a_trial_without_measurements_is_named(params: Params, kept: slice, what: str) -> None:
    records = make_records(params)
    history = analysis.find_trial("default", "scratch", 1, records)[0].history
    history[:] = history[kept]
    with pytest.raises(MaskDMError, match=rf"^records/default/scratch\.jsonl: scratch/1: no {what} was measured"):
        analysed(params, records)


def test_samples_and_the_floor_are_measured_alike(params: Params) -> None:
    records, times = make_records(params), make_times(params)
    found = analysis.measured_with("default", params, records)
    assert set(found) == set(analysis.SETUP)
    curves = analysis.curves("default", params, records, times)
    assert analysis.trials("default", params, records, curves)["distance"].notna().all()
    says = r"scratch/1: extractor=effnet_lite0; allowed: inception, as in records/reference\.json$"
    with pytest.raises(MaskDMError, match=says):
        analysis.measured_with("default", params, records, {**REFERENCE, "extractor": "inception"})
    analysis.find_trial("default", "block90", 2, records)[0].history[-1]["num_inference_steps"] = 50
    says = r"^records/default/block90\.jsonl: block90/2: num_inference_steps=50; allowed: 25, as in the other trials$"
    with pytest.raises(MaskDMError, match=says):
        analysis.measured_with("default", params, records)


def test_rows_that_know_no_guidance_are_of_samples_without_it(params: Params) -> None:
    records = make_records(params)
    assert analysis.measured_with("default", params, records)["guidance_scale"] == 1
    analysis.find_trial("default", "block90", 2, records)[0].history[-1]["guidance_scale"] = 2.0
    with pytest.raises(MaskDMError, match=r"block90/2: guidance_scale=2\.0; allowed: 1\.0, as in the other trials$"):
        analysis.measured_with("default", params, records)


@hypothesis.settings(max_examples=5, deadline=None)
@given(st.randoms(use_true_random=False))
def test_no_wall_time_moves_a_number_or_a_word(random: Random) -> None:
    """The machine may have been busy with other things during any of the trainings, or its times be lost."""

    def busy(machine: Machine | None) -> Machine | None:
        if machine is None or random.random() < 0.1:
            return None
        slower = 10 ** random.uniform(-1, 1)
        return replace(
            machine,
            stage_seconds=machine.stage_seconds * slower,
            images_per_second=machine.images_per_second and machine.images_per_second / slower,
            seconds=[seconds * random.uniform(0.1, 10) for seconds in machine.seconds],
        )

    params = Params.model_validate(settings())
    records = make_records(params)
    usual, found = analysed(params, records), analysed(params, [(record, busy(own)) for record, own in records])
    for name in ("curves", "trials", "arms"):
        one, other = getattr(usual, name), getattr(found, name)
        columns = [column for column in one if not column.startswith("peak_memory_bytes")]
        pd.testing.assert_frame_equal(one[columns], other[columns])
    assert page.headline(params, found.arms, "squares") == page.headline(params, usual.arms, "squares")


# --- records of before density and coverage -----------------------------------------------------------------------


def test_a_measure_that_no_record_has_is_no_column(params: Params) -> None:
    usual = analysed(params)
    found = analysed(params, [(of_before(record), machine) for record, machine in make_records(params)])
    for name in ("curves", "trials", "arms"):
        frame = getattr(usual, name)
        later = [column for column in frame if column.startswith(LATER)]
        assert later
        pd.testing.assert_frame_equal(getattr(found, name), frame.drop(columns=later))
    assert not any(row.keys() & set(LATER) for row in analysis.metrics(found.arms, found.metric).values())


def test_an_arm_of_which_a_seed_lacks_a_measure_has_no_mean_of_it(params: Params) -> None:
    records = [
        (of_before(record) if record.key in ("crop3/2", "scratch/1") else record, machine)
        for record, machine in make_records(params)
    ]
    found = analysed(params, records)
    table = found.trials.set_index(["arm", "seed"])
    assert [table[measure]["crop3", 1] for measure in ("density", "coverage")] == [0.8, 0.2]
    arms = found.arms.set_index("arm")
    for measure in ("density", "coverage"):
        assert arms[arms[measure].isna()].index.tolist() == ["scratch", "crop3"]
        assert arms[f"{measure}_low"].isna().tolist() == arms[measure].isna().tolist()
    assert analysis.metrics(found.arms, found.metric)["crop3"]["density"] is None
    assert arms["precision"].notna().all()


# --- trials -----------------------------------------------------------------------------------------------------


def test_a_trial_is_compared_with_the_baseline_of_its_seed(params: Params) -> None:
    records = make_records(params, spread=0)
    table = analysed(params, records).trials.set_index(["arm", "seed"])
    assert table.index.tolist() == [(arm, seed) for arm in ORDER for seed in NOISE]
    for arm in ORDER:
        own = table.loc[arm]
        assert own[f"heldout_loss{AGAINST}"].to_numpy() == pytest.approx(REDUCTION[arm])
        reached = REDUCTION[arm] ** 4 if REDUCTION[arm] <= 1 else math.inf  # loss ~ compute^-1/4
        for cost in ("compute_to_target", "seconds_to_target"):
            assert own[cost].to_numpy() == pytest.approx(reached, abs=1e-3)
    assert table[f"heldout_loss{AGAINST_CONTROL}"]["block90"].to_numpy() == pytest.approx(0.94 / 0.99)
    assert table[f"heldout_loss{AGAINST_CONTROL}"]["patch90"].isna().all()


def test_a_baseline_that_rises_at_its_end_is_held_to_the_same_measure(params: Params) -> None:
    records = make_records(params)
    history = analysis.find_trial("default", "scratch", 1, records)[0].history
    history[POINTS - 1]["heldout_loss"] = history[POINTS - 11]["heldout_loss"]
    table = analysed(params, records).trials.set_index(["arm", "seed"])
    assert table.loc[("scratch", 1), "compute_to_target"] == 1
    level = REDUCTION["block90"] * (1 - 0.0015 * 2)
    assert table.loc[("block90", 1), "compute_to_target"] == pytest.approx(level**4, abs=2e-3)


def test_the_budget_to_the_target_is_that_with_which_an_arm_ends_there(params: Params) -> None:
    half = params.model_copy(
        update={
            "budget": Budget(train_flops=BUDGET / 2, snapshots=(1.0,)),
            "arms": {name: params.arms[name] for name in ("scratch", "block90", "crop3")},
            "controls": {},
        }
    )
    shorter = analysed(half)
    found = analysed(params, shorter=[shorter.trials])
    assert shorter.trials["budget_to_target"].isna().all()
    table = found.trials.set_index(["arm", "seed"])["budget_to_target"]
    assert table["scratch"].to_numpy() == pytest.approx(1)
    levels = [0.94 * (1 + SPREAD * (index - 1.5)) for index in range(4)]
    assert table["block90"].to_numpy() == pytest.approx([level**4 for level in levels])  # loss ~ compute^-1/4
    assert np.isinf(table["crop3"]).all()
    assert table["patch90"].isna().all()
    arms = found.arms.set_index("arm")
    assert arms["seeds_at_target_by_budget"][["scratch", "block90", "crop3"]].tolist() == [4, 4, 0]
    assert math.isnan(arms["budget_to_target"]["patch90"])


def test_trials_are_found_by_arm_and_seed_whatever_their_key_ends_with(params: Params) -> None:
    records = [
        (replace(record, key=f"part/{i}"), own) for i, (record, own) in enumerate(make_records(params, name="part"))
    ]
    found = analysis.curves("part", params, records, make_times(params, "part"))
    pd.testing.assert_frame_equal(found.assign(comparison="default"), analysed(params).curves)


def test_slower_steps_move_the_seconds_and_not_the_compute(params: Params) -> None:
    usual, slow = (
        analysed(params, times=make_times(params, block90=slower)).arms.set_index("arm").loc["block90"]
        for slower in (1.0, 1.5)
    )
    assert slow["compute_to_target"] == usual["compute_to_target"]
    for column in ("seconds_to_target", "train_seconds"):
        assert slow[column] == pytest.approx(1.5 * usual[column])
    assert slow["images_per_second"] == pytest.approx(usual["images_per_second"] / 1.5)
    assert usual["images_per_second"] == pytest.approx(1e5 / (BUDGET / SPEED))


# --- arms -------------------------------------------------------------------------------------------------------


def test_the_table_of_arms_has_means_and_t_intervals(params: Params) -> None:
    found = analysed(params)
    arms = found.arms.set_index("arm")
    assert arms.index.tolist() == ORDER
    for arm, own in found.trials.groupby("arm"):
        for measure in (f"heldout_loss{AGAINST}", f"distance{AGAINST}", "heldout_loss"):
            known = stats.ttest_1samp(own[measure], 0).confidence_interval(0.95)
            ends = [arms[f"{measure}{end}"][arm] for end in ("", "_low", "_high")]
            expected = [own[measure].mean(), known.low, known.high]
            assert ends == pytest.approx([1, 1, 1] if arm == "scratch" and AGAINST in measure else expected)
    assert set(arms["seeds"]) == {4}
    assert arms["seeds_at_target"].tolist() == [4, 4, 4, 4, 0]
    assert arms["compute_to_target"]["crop3"] == arms["compute_to_target_high"]["crop3"] == math.inf
    assert arms["effective_mask_ratio"].tolist() == ["0", "0.90625", "0.875", "0", "0.859375"]
    assert arms["mask_share"].tolist() == [0, 0.25, 0.25, 0, 0.25]
    assert arms["batch_size"].tolist()[:3] == ["64", "256 -> 64", "256 -> 64"]
    assert set(arms["peak_memory_bytes"]) == {900_000_000}


def test_phases_in_sequence_are_told_apart() -> None:
    staged = settings()
    second = {"mask": {"strategy": "block", "ratio": 0.5, "block": 2}, "share": 0.25, "batch_size": 64}
    staged["arms"]["patch90"].insert(1, second)
    params = Params.model_validate(staged)
    found = analysed(params)
    row = found.arms.set_index("arm").loc["patch90"]
    assert row["effective_mask_ratio"] == "0.90625 -> 0.5"
    assert row["masks"] == "patch-wise, 90 % -> 2x2 blocks, 50 %"
    assert row["mask_share"] == 0.5
    phases = found.curves.loc[found.curves["arm"] == "patch90", "phase"]
    assert phases.dropna().unique().tolist() == [0, 1, 2]


def test_with_one_seed_there_are_no_intervals() -> None:
    params = Params.model_validate(settings() | {"seeds": [1]})
    arms = analysed(params).arms
    assert arms[[column for column in arms if str(column).endswith(("_low", "_high"))]].isna().all(axis=None)
    assert arms[f"heldout_loss{AGAINST}"].tolist() == pytest.approx([REDUCTION[arm] for arm in ORDER])


def test_a_mean_curve_is_the_mean_of_its_seeds_at_equal_cost(params: Params) -> None:
    measured, mean = analysed(params).curves, np.mean(list(NOISE.values()))
    for cost, budget in (("train_flops", BUDGET), ("train_seconds", BUDGET / SPEED)):
        curve = analysis.mean_curve(measured, "scratch", "heldout_loss", cost)
        assert curve[cost].iloc[[0, -1]].tolist() == pytest.approx([budget / POINTS, budget])
        assert curve["mean"].iloc[-1] == pytest.approx(0.0806 * mean)
        known = stats.ttest_1samp([0.0806 * noise for noise in NOISE.values()], 0).confidence_interval(0.95)
        assert curve[["low", "high"]].iloc[-1].tolist() == pytest.approx([known.low, known.high])
    assert len(analysis.mean_curve(measured, "scratch", "distance", "train_flops")) == 3


def test_the_means_of_all_arms_lie_on_one_grid_of_compute(params: Params) -> None:
    measured = analysed(params).curves
    table = analysis.means(measured)
    assert table["arm"].unique().tolist() == ORDER
    for _, own in table.groupby("arm"):
        assert own["tflops"].to_numpy() == pytest.approx(np.linspace(0.9, 36, analysis.GRID))
        assert own["seconds"].to_numpy() == pytest.approx(own["tflops"].to_numpy() * 1e12 / SPEED)
        assert (own["heldout_loss_low"] < own["heldout_loss"]).all()
        assert (own["heldout_loss"] < own["heldout_loss_high"]).all()
    assert table.notna().all(axis=None)


def test_the_metrics_are_plain_numbers(params: Params) -> None:
    arms = analysed(params, crop3=0.999).arms  # one that some seeds bring to the target
    found = analysis.metrics(arms, "fd_effnet_lite0")
    assert list(found) == ORDER
    assert found["block90"]["train_seconds"] == 450
    assert found["block90"].keys() >= {"heldout_loss", "fd_effnet_lite0", "compute_to_target_low"}
    assert (found["block90"]["density"], found["block90"]["coverage"]) == (0.8, 0.2)
    assert found["crop3"]["compute_to_target"] is None
    assert found["crop3"]["compute_to_target_low"] == pytest.approx(0.98, abs=0.02)
    assert all(value is None or math.isfinite(value) for row in found.values() for value in row.values())
