"""The statistics have known answers; the report says what the records say, twice in the same bytes."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskdm import report
from maskdm.config import Params, Recipe
from maskdm.errors import MaskDMError
from maskdm.records import Machine, Record, read_records, record_path, write_record
from pipeline.report import main

PROJECT_ROOT = Path(__file__).resolve().parent.parent
BUDGET = 36e12
SPEED = 80e9  # FLOPs a second
COST = {"pretrain": 25e6, "finetune": 190e6}  # FLOPs an image
REDUCTION = {"scratch": 1.0, "patch90": 0.95, "block90": 0.94, "crop3": 1.03}  # final loss against scratch
DISTANCE = {"scratch": 920.0, "patch90": 880.0, "block90": 842.0, "crop3": 990.0}
SETUP = {
    "samples": 1000,
    "reference": 10000,
    "sampler": "ddim",
    "num_inference_steps": 25,
    "eta": 0.0,
    "weights": "ema",
    "extractor": "effnet_lite0",
    "input_size": 96,
}
REFERENCE: dict[str, Any] = {
    "floor": {"fd_effnet_lite0": 80.25, "kid": -0.00012, "precision": 0.91, "recall": 0.9},
    "floor_images": 1000,
    "floor_training_images": 0,
    "reference_images": 10000,
    "extractor": "effnet_lite0",
    "input_size": 96,
    "data_sha256": "ab" * 32,
}
DATASET: dict[str, Any] = {
    "name": "squares",
    "source": "made by the tests",
    "files": {},
    "train": 24,
    "heldout": 12,
    "shape": [1, 32, 32],
    "num_classes": None,
    "class_names": None,
    "sha256": "ab" * 32,
    "skipped": [],
}
RECIPE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "optimisation": {
        "lr": 2e-3,
        "betas": [0.9, 0.99],
        "weight_decay": 0.03,
        "grad_clip": 1.0,
        "warmup": 0.03,
        "decay": 0.3,
        "ema_horizon": 0.1,
        "hflip": 0.0,
    },
}


# --- a comparison without training ----------------------------------------------------------------------------


def settings() -> dict[str, Any]:
    def masked(mask: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"mask": mask, "share": 0.25, "batch_size": 256}]

    return {
        "seed": 0,
        "recipe": "tuned",
        "data": {
            "name": "image_folder",
            "root": None,
            "image_size": 32,
            "channels": 1,
            "holdout": 12,
            "train_images": None,
        },
        "model": {"patch_size": 4, "embed_dim": 96, "depth": 5, "num_heads": 3, "class_conditional": False},
        "budget": {"train_flops": BUDGET, "snapshots": [0.2, 0.6, 1.0]},
        "heldout": {"images": 12, "points": 40},
        "pretrain": {
            "none": [],
            "patch90": masked({"strategy": "patch", "ratio": 0.9}),
            "block90": masked({"strategy": "block", "ratio": 0.9, "block": 2}),
            "crop3": masked({"strategy": "crop", "size": 3}),
        },
        "arms": {
            "scratch": {"pretrain": "none", "finetune": {"batch_size": 64}},
            "patch90": {"pretrain": "patch90", "finetune": {"batch_size": 64}},
            "block90": {"pretrain": "block90", "finetune": {"batch_size": 64}},
            "crop3": {"pretrain": "crop3", "finetune": {"batch_size": 64}},
        },
        "baseline": "scratch",
        "sampling": {"sampler": "ddim", "num_inference_steps": 25, "eta": 0.0, "batch_size": 250},
        "evaluation": {
            "extractor": "effnet_lite0",
            "input_size": 96,
            "weights": None,
            "batch_size": 64,
            "samples": 1000,
            "reference": 10000,
            "kid_subsets": 100,
            "kid_subset_size": 500,
            "nearest_k": 3,
        },
    }


def make_records(params: Params, reduction: dict[str, float] = REDUCTION) -> list[tuple[Record, Machine | None]]:
    """Records of smooth made-up curves: fine-tuned arms follow scratch's power law, times `reduction`."""
    made: dict[tuple[str, str], tuple[Record, Machine | None]] = {}
    for name, arm in params.arms.items():
        phases = params.pretrain[arm.pretrain]
        switch = BUDGET * sum(phase.share for phase in phases)
        marks = np.arange(1, 41) * BUDGET / 40
        histories: dict[str, list[dict[str, Any]]] = {"pretrain": [], "finetune": []}
        ends = np.cumsum([phase.share for phase in phases]) * BUDGET
        images = 0.0
        for before, flops in zip([0.0, *marks], marks, strict=False):
            stage = "pretrain" if flops <= switch * (1 + 1e-9) else "finetune"
            images += (flops - before) / COST[stage]
            loss = 0.0806 * (flops / BUDGET) ** -0.25 * reduction[name]
            if stage == "pretrain":
                loss = 0.3 * (flops / BUDGET) ** -0.1 * reduction[name]
            row = {"step": len(histories[stage]) + 1, "phase": int(np.searchsorted(ends * (1 + 1e-9), flops))}
            row |= {"images_seen": round(images), "train_flops": flops, "loss": loss, "heldout_loss": loss}
            histories[stage].append(row | {"lr": 1e-3, "grad_norm": 1.0})
        for stage, key in (("pretrain", arm.pretrain), ("finetune", name)):
            start = switch if stage == "finetune" else 0.0
            seconds = [(row["train_flops"] - start) / SPEED for row in histories[stage]]
            made[stage, key] = make_record(stage, key, name, histories[stage], seconds)
        made["evaluate", name] = make_record("evaluate", name, name, evaluate_rows(params, name), [20.0] * 3)
    return list(made.values())


def evaluate_rows(params: Params, arm: str) -> list[dict[str, Any]]:
    return [
        {
            "fraction": share,
            "images_seen": 1000,
            "train_flops": share * BUDGET,
            "fd_effnet_lite0": DISTANCE[arm] / share**0.5,
            "kid": DISTANCE[arm] / share**0.5 / 30000,
            "precision": 0.6,
            "recall": 0.4,
            **SETUP,
        }
        for share in params.budget.snapshots
    ]


def make_record(
    stage: Any, key: str, arm: str, history: list[dict[str, Any]], seconds: list[float]
) -> tuple[Record, Machine | None]:
    data = {name: DATASET[name] for name in ("name", "sha256", "train", "heldout", "shape")}
    record = Record(stage, key, arm, "fingerprint", {"seed": 0}, data, {}, history)
    machine = Machine(
        started_at="2025-01-01T00:00:00+00:00",
        git={},
        dvc={},
        hardware={},
        train_seconds=seconds[-1] if seconds else 0.0,
        images_per_second=2000.0 if stage == "pretrain" and history else 400.0 if history else None,
        peak_memory_bytes=700_000_000 if stage == "pretrain" else 900_000_000,
        seconds=seconds,
    )
    return record, machine


def frames(params: Params, records: report.Records) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    losses = report.heldout_losses(params, records)
    measured = report.distances(params, records, REFERENCE, losses)
    return losses, measured, report.arms_table(params, records, losses, measured)


def write_project(root: Path, params: dict[str, Any], records: report.Records) -> None:
    """All files that the stage reads."""
    (root / "profiles" / "recipes").mkdir(parents=True)
    for path, content in (("params.yaml", params), ("profiles/recipes/tuned.yaml", RECIPE)):
        (root / path).write_text(json.dumps(content))  # JSON is YAML
    for record, machine in records:
        assert machine is not None
        write_record(root, record, machine)
    (root / "records" / "reference.json").write_text(json.dumps(REFERENCE))
    prepared = root / "data" / "prepared"
    prepared.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (36, 1, 32, 32), dtype=np.uint8)
    np.save(prepared / "images.npy", images)
    (prepared / "dataset.json").write_text(json.dumps(DATASET))
    for arm in params["arms"]:
        folder = root / "runs" / "evaluate" / arm
        folder.mkdir(parents=True)
        np.save(folder / "samples.npy", np.repeat(images, 2, axis=0)[:64])
    names = [f"{key}/{index}" for key, phases in params["pretrain"].items() for index in range(len(phases))]
    masks: dict[str, Any] = {name: np.eye(8, dtype=bool)[None].repeat(16, 0) for name in names}
    np.savez(root / "runs" / "masks.npz", **masks)


def run_stage(root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, "-m", "pipeline.report"]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def params() -> Params:
    return Params.model_validate(settings())


@pytest.fixture
def project(tmp_path: Path, params: Params) -> Path:
    write_project(tmp_path, settings(), make_records(params))
    return tmp_path


# --- statistics of one curve ----------------------------------------------------------------------------------


def test_the_target_is_interpolated_log_linearly() -> None:
    assert report.compute_to_target([10, 20], [4.0, 1.0], 2.0) == pytest.approx(15)


def test_a_curve_that_rises_again_counts_with_its_best_value_so_far() -> None:
    cost, values = [1, 2, 3, 4], [4.0, 1.0, 8.0, 0.25]
    assert report.compute_to_target(cost, values, 2.0) == pytest.approx(1.5)
    assert report.compute_to_target(cost, values, 0.5) == pytest.approx(3.5)  # from the best, 1, not from 8


def test_a_target_below_the_curve_is_never_reached() -> None:
    assert report.compute_to_target([1, 2], [4.0, 1.0], 0.9) == math.inf


def test_a_curve_that_starts_at_the_target_reaches_it_at_its_first_point() -> None:
    assert report.compute_to_target([3, 4], [1.0, 0.5], 1.0) == 3
    assert report.compute_to_target([3], [0.5], 1.0) == 3


def test_an_unknown_cost_gives_no_number() -> None:
    assert math.isnan(report.compute_to_target([math.nan, math.nan], [4.0, 1.0], 2.0))


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_lower_target_never_costs_less(values: list[float], one: float, other: float) -> None:
    cost = np.arange(1, len(values) + 1)
    assert report.compute_to_target(cost, values, min(one, other)) >= report.compute_to_target(
        cost, values, max(one, other)
    )


@given(st.lists(st.floats(0.1, 0.95), min_size=2, max_size=20), st.floats(0.001, 0.999))
def test_value_and_target_undo_each_other_on_a_falling_curve(factors: list[float], place: float) -> None:
    cost, values = np.arange(len(factors)), np.cumprod(factors)
    at = place * cost[-1]
    assert report.compute_to_target(cost, values, report.value_at(cost, values, at)) == pytest.approx(at, abs=1e-6)


def test_a_value_outside_the_curve_is_unknown() -> None:
    assert math.isnan(report.value_at([1, 2], [4.0, 1.0], 0.5))
    assert math.isnan(report.value_at([1, 2], [4.0, 1.0], 2.5))


# --- frames -----------------------------------------------------------------------------------------------------


def test_pre_training_and_fine_tuning_make_one_curve(params: Params) -> None:
    losses = report.heldout_losses(params, make_records(params))
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
        report.heldout_losses(params, records)


def test_timings_that_do_not_fit_the_record_are_named(params: Params) -> None:
    records = [
        (record, replace(machine, seconds=[1.0]) if machine and record.key == "crop3" else machine)
        for record, machine in make_records(params)
    ]
    with pytest.raises(MaskDMError, match=r"^records/pretrain/crop3\.machine\.json: 1 timings; allowed: 10,"):
        report.heldout_losses(params, records)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0, None])
def test_a_loss_that_is_no_positive_number_is_named(params: Params, value: float | None) -> None:
    records = make_records(params)
    report.find_record(records, "pretrain", "patch90")[0].history[3]["heldout_loss"] = value
    with pytest.raises(MaskDMError, match=r"^records/pretrain/patch90\.json: heldout_loss="):
        report.heldout_losses(params, records)


def test_an_arm_without_measurements_is_named(params: Params) -> None:
    records = make_records(params)
    report.find_record(records, "finetune", "scratch")[0].history.clear()
    report.find_record(records, "finetune", "scratch")[1].seconds.clear()  # type: ignore[union-attr]
    with pytest.raises(MaskDMError, match=r"^records/finetune/scratch\.json"):
        report.heldout_losses(params, records)


def test_every_distance_says_how_it_was_measured(params: Params) -> None:
    _, measured, arms = frames(params, make_records(params))
    for table in (measured, arms):
        assert table.loc[table["arm"] != report.FLOOR, report.SETUP].notna().all(axis=None)
        assert table["arm"].iloc[-1] == report.FLOOR
        assert table["fd_effnet_lite0"].iloc[-1] == REFERENCE["floor"]["fd_effnet_lite0"]
        assert table[["extractor", "samples", "reference"]].iloc[-1].tolist() == ["effnet_lite0", 1000, 10000]


def test_a_snapshot_in_pre_training_has_its_time_from_the_loss_curve(params: Params) -> None:
    _, measured, _ = frames(params, make_records(params))
    early = measured[measured["fraction"] == 0.2]  # pre-training takes a quarter
    assert early["train_seconds"].to_numpy() == pytest.approx(0.2 * BUDGET / SPEED)


def test_a_floor_of_another_extractor_is_an_error(params: Params) -> None:
    records = make_records(params)
    losses = report.heldout_losses(params, records)
    with pytest.raises(
        MaskDMError, match=r"^records/evaluate/scratch\.json: extractor=effnet_lite0; allowed: inception"
    ):
        report.distances(params, records, {**REFERENCE, "extractor": "inception"}, losses)


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
    assert block["images_per_second_pretrain"] == 2000
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
        record, machine = report.find_record(records, stage, "patch90")
        del record.history[-1]
        assert machine is not None
        del machine.seconds[-1]
    arms = frames(params, records)[2].set_index("arm")
    assert arms.loc["scratch", "heldout_loss_at_equal_compute"] == pytest.approx(0.0806 * (39 / 40) ** -0.25)
    assert arms.loc["scratch", "fd_effnet_lite0_at_equal_compute"] == pytest.approx(920 / 0.6**0.5)


def test_single_snapshots_a_little_apart_are_compared(params: Params) -> None:
    records = make_records(params)
    for arm, excess in (("scratch", 0.0), ("block90", 1e-3)):
        history = report.find_record(records, "evaluate", arm)[0].history
        del history[:-1]
        history[0]["train_flops"] *= 1 + excess
    arms = frames(params, records)[2].set_index("arm")
    assert arms.loc["block90", "fd_effnet_lite0_at_equal_compute"] == pytest.approx(842)


def test_without_timings_there_are_no_seconds(params: Params) -> None:
    records = [(record, None if record.stage == "finetune" else machine) for record, machine in make_records(params)]
    arms = frames(params, records)[2].set_index("arm")
    assert arms[["train_seconds", "seconds_to_target", "images_per_second"]].isna().all(axis=None)
    assert arms.loc["block90", "compute_to_target"] == pytest.approx(0.94**4, abs=1e-3)
    assert "seconds" not in report.verdict(params, arms.reset_index())
    assert "seconds" not in report.caution(params, arms.reset_index())


# --- the answer -----------------------------------------------------------------------------------------------------


def answer(params: Params, **reduction: float) -> str:
    return report.verdict(params, frames(params, make_records(params, {**REDUCTION, **reduction}))[2])


@pytest.mark.parametrize(
    ("reduction", "heading"),
    [
        ({"crop3": 0.9}, "Masked pre-training paid at this budget."),
        ({}, "Masked pre-training paid for 2 of 3 arms at this budget."),
        ({"patch90": 1.1, "block90": 1.1}, "Masked pre-training did not pay at this budget."),
    ],
)
def test_the_answer_follows_the_numbers(params: Params, reduction: dict[str, float], heading: str) -> None:
    assert answer(params, **reduction).startswith(f"**{heading}**")


def test_a_gain_within_the_tolerance_of_the_budgets_is_none(params: Params) -> None:
    text = answer(params, patch90=0.9999, block90=0.9999)
    assert text.startswith("**Masked pre-training did not pay")


def test_the_answer_states_the_number_both_ways(params: Params) -> None:
    text = answer(params)
    assert "`block90` reached it with 78.1 % of `scratch`'s compute and 78.1 % of its seconds" in text
    assert "`crop3` did not reach it (3.0 % higher at equal compute)" in text
    assert "agrees: `scratch` 920.0; `patch90` 880.0, 4.3 % lower" in text
    assert "real vs real: 80.25" in text


def test_a_distance_that_contradicts_the_loss_is_said(params: Params) -> None:
    assert "agrees for `patch90` and `block90` and disagrees for `crop3`" in answer(params, crop3=0.9)
    assert "disagrees: " in answer(params, patch90=1.1, block90=1.1, crop3=0.9)


def test_time_that_contradicts_compute_is_said(params: Params) -> None:
    records = [
        (
            record,
            replace(machine, seconds=[3 * s for s in machine.seconds])
            if machine and record.key == "block90"
            else machine,
        )
        for record, machine in make_records(params)
    ]
    text = report.verdict(params, frames(params, records)[2])
    assert "`block90` reached it with 78.1 % of `scratch`'s compute but " in text


def test_the_best_of_a_baseline_that_rises_at_its_end_is_said(params: Params) -> None:
    records = make_records(params)
    history = report.find_record(records, "finetune", "scratch")[0].history
    history[-1]["heldout_loss"] = history[-10]["heldout_loss"]
    text = report.verdict(params, frames(params, records)[2])
    assert "`scratch` itself was there at 77.5 % and ended no better." in text


def test_a_comparison_without_masks_has_nothing_to_say() -> None:
    bare = settings()
    bare["arms"] = {"scratch": bare["arms"]["scratch"]}
    bare["pretrain"] = {"none": []}
    params = Params.model_validate(bare)
    records = make_records(params)
    assert "nothing to compare" in report.verdict(params, frames(params, records)[2])


def test_the_caution_names_a_stand_in_only_where_there_is_one(params: Params) -> None:
    arms = frames(params, make_records(params))[2]
    assert "`fd_effnet_lite0` is a stand-in, not FID" in report.caution(params, arms)
    fid = arms.rename(columns={"fd_effnet_lite0": "fid"}).loc[:, lambda table: ~table.columns.str.startswith("fd_")]
    assert "stand-in" not in report.caution(params, fid)
    assert "One seed (0)" in report.caution(params, fid)


@pytest.mark.parametrize(
    ("value", "text"), [(36e12, "36 TFLOPs"), (999.97e9, "1000 GFLOPs"), (1.5e15, "1.5 PFLOPs"), (12, "12 FLOPs")]
)
def test_numbers_have_an_si_prefix(value: float, text: str) -> None:
    assert report.si(value, "FLOPs") == text


def test_every_row_of_a_markdown_table_has_all_cells(params: Params) -> None:
    records = make_records(params)
    arms = frames(params, records)[2]
    text = report.markdown(params, Recipe.model_validate(RECIPE), DATASET, records, arms, list(report.CAPTIONS))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [2 + 4, 2 + 4, 2 + 5]  # the floor in the table of distances
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert "not reached" in tables[1][-1]
    assert "nan" not in text


# --- the stage ------------------------------------------------------------------------------------------------------


def test_the_stage_writes_everything_and_the_same_bytes_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_stage(project)
    assert done.returncode == 0, done.stderr
    first = {path.name: path.read_bytes() for path in (project / "reports").iterdir()}
    pictures = {f"{name}.{suffix}" for name in report.CAPTIONS for suffix in ("png", "svg")}
    assert first.keys() == pictures | {"report.md", "arms.csv", "heldout_loss.csv", "distances.csv"}
    text = first["report.md"].decode()
    assert all(name in text for name in first if name != "report.md")
    monkeypatch.chdir(project)
    main()
    assert {path.name: path.read_bytes() for path in (project / "reports").iterdir()} == first


def test_the_csv_files_hold_the_frames(project: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    main()
    losses, measured, arms = frames(params, read_records(project))
    for name, frame in (("heldout_loss", losses), ("distances", measured), ("arms", arms)):
        read = pd.read_csv(project / "reports" / f"{name}.csv")
        pd.testing.assert_frame_equal(read, pd.read_csv(StringIO(frame.to_csv(index=False))), rtol=1e-9)


def test_without_timings_the_figures_against_time_go(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    (project / "reports").mkdir()
    (project / "reports" / "heldout_loss_time.png").write_bytes(b"of an earlier report")
    record_path(project, "finetune", "block90").with_suffix(".machine.json").unlink()
    main()
    assert not list((project / "reports").glob("*_time.*"))
    text = (project / "reports" / "report.md").read_text()
    assert "what needs seconds is left out" in text
    assert "_time" not in text


@pytest.mark.parametrize(
    "name",
    [
        "records/finetune/crop3.json",
        "records/evaluate/block90.json",
        "records/reference.json",
        "runs/evaluate/patch90/samples.npy",
        "runs/masks.npz",
        "profiles/recipes/tuned.yaml",
    ],
)
def test_a_missing_file_is_named(
    project: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    (project / name).unlink()
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1
    assert not (project / "reports").exists()


@pytest.mark.parametrize("name", ["records/reference.json", "runs/evaluate/patch90/samples.npy", "runs/masks.npz"])
def test_a_truncated_file_is_named(
    project: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    (project / name).write_bytes((project / name).read_bytes()[:40])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"error: {name}: " in capsys.readouterr().err


def test_the_report_does_not_import_torch() -> None:
    code = "import sys, maskdm.report, maskdm.figures, pipeline.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=False).returncode == 0
