import math
from dataclasses import replace
from random import Random

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskdm import analysis, report
from maskdm.config import Params
from maskdm.errors import MaskDMError
from maskdm.records import Machine
from tests.comparison import BUDGET, COST, REFERENCE, SPEED, frames, make_records, make_times, settings


@pytest.fixture
def params() -> Params:
    return Params.model_validate(settings())


# --- statistics of one curve ----------------------------------------------------------------------------------


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


# --- frames -----------------------------------------------------------------------------------------------------


def test_pre_training_and_fine_tuning_make_one_curve(params: Params) -> None:
    losses = analysis.heldout_losses(params, make_records(params), make_times(params))
    for arm, curve in losses.groupby("arm"):
        assert (
            curve[["images_seen", "train_flops", "train_seconds"]]
            .apply(lambda column: column.is_monotonic_increasing)
            .all()
        )
        assert curve["train_flops"].iloc[-1] == pytest.approx(BUDGET)
        assert curve["train_seconds"].iloc[-1] == pytest.approx(BUDGET / SPEED)
        assert list(curve["stage"].unique()) == (["finetune"] if arm == "scratch" else ["pretrain", "finetune"])


def test_a_missing_record_is_named(params: Params) -> None:
    records = [pair for pair in make_records(params) if (pair[0].stage, pair[0].key) != ("finetune", "crop3")]
    with pytest.raises(MaskDMError, match=r"^records/finetune/crop3\.json: no such file"):
        analysis.heldout_losses(params, records, make_times(params))


def test_a_phase_that_was_not_timed_is_named(params: Params) -> None:
    times = make_times(params)
    for seconds in ({**times.seconds, "crop3": [1.0]}, {}):
        phase = 0 if "crop3" not in seconds else 1
        arm = "crop3" if phase else "scratch"
        with pytest.raises(MaskDMError, match=rf"^step time of {arm}, phase {phase}: not measured; the stage"):
            analysis.heldout_losses(params, make_records(params), replace(times, seconds=seconds))


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0, None])
def test_a_loss_that_is_no_positive_number_is_named(params: Params, value: float | None) -> None:
    records = make_records(params)
    analysis.find_record(records, "pretrain", "patch90")[0].history[3]["heldout_loss"] = value
    with pytest.raises(MaskDMError, match=r"^records/pretrain/patch90\.json: heldout_loss="):
        analysis.heldout_losses(params, records, make_times(params))


def test_an_arm_without_measurements_is_named(params: Params) -> None:
    records = make_records(params)
    analysis.find_record(records, "finetune", "scratch")[0].history.clear()
    with pytest.raises(MaskDMError, match=r"^records/finetune/scratch\.json"):
        analysis.heldout_losses(params, records, make_times(params))


def test_every_distance_says_how_it_was_measured(params: Params) -> None:
    _, measured, arms = frames(params, make_records(params))
    for table in (measured, arms):
        assert table.loc[table["arm"] != analysis.FLOOR, analysis.SETUP].notna().all(axis=None)
        assert table["arm"].iloc[-1] == analysis.FLOOR
        assert table["fd_effnet_lite0"].iloc[-1] == REFERENCE["floor"]["fd_effnet_lite0"]
        assert table[["extractor", "samples", "reference"]].iloc[-1].tolist() == ["effnet_lite0", 1000, 10000]


@hypothesis.settings(max_examples=20)
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
    distorted = [(record, busy(machine)) for record, machine in records]
    for usual, found in zip(frames(params, records), frames(params, distorted), strict=True):
        columns = [column for column in usual if column != "peak_memory_bytes"]
        pd.testing.assert_frame_equal(usual[columns], found[columns])
    assert report.verdict(params, found) == report.verdict(params, usual)


def test_a_snapshot_in_pre_training_has_its_time_from_the_loss_curve(params: Params) -> None:
    _, measured, _ = frames(params, make_records(params))
    early = measured[measured["fraction"] == 0.2]  # pre-training takes a quarter
    assert early["train_seconds"].to_numpy() == pytest.approx(0.2 * BUDGET / SPEED)


def test_a_floor_of_another_extractor_is_an_error(params: Params) -> None:
    records = make_records(params)
    losses = analysis.heldout_losses(params, records, make_times(params))
    with pytest.raises(
        MaskDMError, match=r"^records/evaluate/scratch\.json: extractor=effnet_lite0; allowed: inception"
    ):
        analysis.distances(params, records, {**REFERENCE, "extractor": "inception"}, losses)


# --- the table of arms --------------------------------------------------------------------------------------------


def test_the_table_of_arms_has_the_known_numbers(params: Params) -> None:
    arms = frames(params, make_records(params))[2].set_index("arm")
    scratch, block = arms.loc["scratch"], arms.loc["block90"]
    assert (
        scratch["compute_to_target"]
        == scratch["seconds_to_target"]
        == scratch["fd_effnet_lite0_compute_to_target"]
        == 1
    )
    assert block["compute_to_target"] == pytest.approx(0.94**4, abs=1e-3)  # loss ~ compute^-1/4
    assert block["seconds_to_target"] == pytest.approx(block["compute_to_target"])
    assert block["heldout_loss_at_equal_compute"] == pytest.approx(0.94 * scratch["heldout_loss"])
    assert block["images_per_second"] == pytest.approx(block["images_seen"] / 450)
    assert block["images_per_second_pretrain"] == pytest.approx(SPEED / COST["pretrain"], rel=1e-5)
    assert block["images_per_second_finetune"] == pytest.approx(SPEED / COST["finetune"], rel=1e-5)
    assert arms["images_per_second_pretrain"].notna().tolist() == [False, True, True, True, False]
    assert block["peak_memory_bytes"] == 900_000_000
    assert arms.loc["crop3", "compute_to_target"] == math.inf
    assert arms["effective_mask_ratio"].tolist()[:4] == ["0", "0.90625", "0.875", "0.859375"]


def test_phases_in_sequence_are_told_apart() -> None:
    staged = settings()
    staged["pretrain"]["block90"].append(
        {"mask": {"strategy": "block", "ratio": 0.5, "block": 2}, "share": 0.25, "batch_size": 64}
    )
    params = Params.model_validate(staged)
    losses, _, arms = frames(params, make_records(params))
    row = arms.set_index("arm").loc["block90"]
    assert row["effective_mask_ratio"] == "0.875 -> 0.5"
    assert row["pretrain_masks"] == "2x2 blocks, 90 % -> 2x2 blocks, 50 %"
    assert row["pretrain_share"] == 0.5
    assert losses.loc[losses["arm"] == "block90", "phase"].unique().tolist() == [0, 1, 2]


def test_equal_compute_is_what_all_arms_reached(params: Params) -> None:
    records = make_records(params)
    for stage in ("finetune", "evaluate"):
        del analysis.find_record(records, stage, "patch90")[0].history[-1]
    arms = frames(params, records)[2].set_index("arm")
    assert arms.loc["scratch", "heldout_loss_at_equal_compute"] == pytest.approx(0.0806 * (39 / 40) ** -0.25)
    assert arms.loc["scratch", "fd_effnet_lite0_at_equal_compute"] == pytest.approx(920 / 0.6**0.5)


def test_single_snapshots_a_little_apart_are_compared(params: Params) -> None:
    records = make_records(params)
    for arm, excess in (("scratch", 0.0), ("block90", 1e-3)):
        history = analysis.find_record(records, "evaluate", arm)[0].history
        del history[:-1]
        history[0]["train_flops"] *= 1 + excess
    arms = frames(params, records)[2].set_index("arm")
    assert arms.loc["block90", "fd_effnet_lite0_at_equal_compute"] == pytest.approx(842)


def test_slower_steps_move_the_seconds_to_the_target_and_not_the_compute(params: Params) -> None:
    records = make_records(params)
    usual, slow = (
        frames(params, records, make_times(params, **slower))[2].set_index("arm").loc["block90"]
        for slower in ({}, {"block90": 1.5})
    )
    assert slow["compute_to_target"] == usual["compute_to_target"]
    assert slow["seconds_to_target"] == pytest.approx(1.5 * usual["seconds_to_target"])
    assert slow["train_seconds"] == pytest.approx(1.5 * usual["train_seconds"])
    assert slow["images_per_second"] == pytest.approx(usual["images_per_second"] / 1.5)
