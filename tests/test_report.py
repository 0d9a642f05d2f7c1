from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from maskdm import analysis, report
from maskdm.config import Params, Recipe
from maskdm.records import read_records
from pipeline.report import main
from tests.comparison import (
    DATASET,
    RECIPE,
    REDUCTION,
    frames,
    make_records,
    make_times,
    run_stage,
    settings,
    write_project,
)


@pytest.fixture
def params() -> Params:
    return Params.model_validate(settings())


@pytest.fixture
def project(tmp_path: Path, params: Params) -> Path:
    write_project(tmp_path, settings(), make_records(params))
    return tmp_path


# --- the answer -----------------------------------------------------------------------------------------------------


def answer(params: Params, **reduction: float) -> str:
    return report.verdict(params, frames(params, make_records(params, {**REDUCTION, **reduction}))[2])


@pytest.mark.parametrize(
    ("reduction", "heading"),
    [
        ({"crop3": 0.9}, "By held-out loss, masked pre-training paid at this budget."),
        ({}, "By held-out loss, masked pre-training paid for 2 of 3 arms at this budget."),
        ({"patch90": 1.1, "block90": 1.1}, "By held-out loss, masked pre-training did not pay at this budget."),
    ],
)
def test_the_answer_follows_the_numbers(params: Params, reduction: dict[str, float], heading: str) -> None:
    assert answer(params, **reduction).startswith(f"**{heading}**")


def test_a_gain_within_the_tolerance_of_the_budgets_is_none(params: Params) -> None:
    text = answer(params, patch90=0.9999, block90=0.9999)
    assert text.startswith("**By held-out loss, masked pre-training did not pay")


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
    arms = frames(params, make_records(params), make_times(params, block90=2.0))[2]
    text = report.verdict(params, arms)
    assert "`block90` reached it with 78.1 % of `scratch`'s compute but 156 % of its seconds" in text


def test_the_best_of_a_baseline_that_rises_at_its_end_is_said(params: Params) -> None:
    records = make_records(params)
    history = analysis.find_record(records, "finetune", "scratch")[0].history
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


def test_every_row_of_a_markdown_table_has_all_cells(params: Params) -> None:
    records = make_records(params)
    arms = frames(params, records)[2]
    recipe, times = Recipe.model_validate(RECIPE), make_times(params)
    text = report.markdown(params, recipe, DATASET, records, times, arms, list(report.CAPTIONS))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [2 + 4, 2 + 4, 2 + 5]  # the floor in the table of distances
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert "not reached" in tables[1][-1]
    assert "nan" not in text
    assert "timed in turn (a CPU, 2 cores; commit `0123456`; spread 3 %)" in text


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


@pytest.mark.parametrize(
    "name",
    [
        "records/finetune/crop3.json",
        "records/evaluate/block90.json",
        "records/reference.json",
        "records/step_time.json",
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


@pytest.mark.parametrize(
    "name",
    ["records/reference.json", "records/step_time.json", "runs/evaluate/patch90/samples.npy", "runs/masks.npz"],
)
def test_a_truncated_file_is_named(
    project: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    (project / name).write_bytes((project / name).read_bytes()[:40])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"error: {name}: " in capsys.readouterr().err
