"""`compare` on the committed records, `reproduce` on a toy project."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from maskdm.config.reading import load_params
from maskdm.config.study import load_study
from maskdm.engine.project import Project
from maskdm.engine.trial import run_trial
from maskdm.reporting.analysis import prediction_interval
from maskdm.reporting.pairs import compare_runs, expect
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.processes import ALONE
from maskdm.tracking.records import Record, distance_metric, read_records, write_record
from tests.cli.conftest import Run
from tests.imports import PROJECT


@pytest.mark.parametrize("comparison", ["default", "methods"])
def test_a_comparison_with_the_baseline_says_what_the_published_table_says(
    comparison: str, monkeypatch: pytest.MonkeyPatch, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(PROJECT)
    parts = load_study(Path("study/params.yaml")).parts
    settings = load_params("params.yaml") if comparison == "default" else parts[comparison]
    table = pd.read_csv(Path("reports", "default" if comparison == "default" else "study", "arms.csv"))
    published = table[(table["comparison"] == comparison) & (table["arm"] != settings.baseline)].iloc[-1]
    monkeypatch.chdir(PROJECT / "docs")
    assert run("compare", *(f"{comparison}/{arm}" for arm in (published["arm"], settings.baseline)), "--json") == 0
    found = {one["measure"]: one for one in json.loads(capsys.readouterr().out)["measures"]}
    columns = {
        "heldout_loss": "heldout_loss_against_baseline",
        distance_metric(found): "distance_against_baseline",
        "compute_to_target": "compute_to_target",
    }
    for measure, column in columns.items():
        for key, end in (("change", ""), ("low", "_low"), ("high", "_high")):
            expected = published[f"{column}{end}"] - 1
            value = found[measure][key]
            assert value is None if np.isinf(expected) else value == pytest.approx(expected, abs=1e-6)
    assert found["compute_to_target"]["reached"] == published["seeds_at_target"]


def test_runs_without_a_common_seed_or_of_other_data_are_no_pairs() -> None:
    records = {record.params["seed"]: record for record, _ in read_records(PROJECT, ("default",))}
    (first, one), (second, other) = list(records.items())[:2]
    with pytest.raises(MaskDMError, match=f"no seed in common \\(seeds {first}; seeds {second}\\)"):
        compare_runs({first: one}, {second: other})
    elsewhere = replace(other, data=other.data | {"sha256": "0"})
    with pytest.raises(MaskDMError, match="other data"):
        compare_runs({1: one}, {1: elsewhere})


def test_a_prediction_interval_holds_the_next_value_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    drawn = random.normal(3, 2, (4000, 5))
    hits = [low <= row[4] <= high for row in drawn for low, high in [prediction_interval(row[:4])]]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.01)


def test_a_single_published_seed_lets_one_expect_nothing() -> None:
    record = read_records(PROJECT, ("default",))[0][0]
    with pytest.raises(MaskDMError, match="1 published seed"):
        expect([record], record)


def test_a_row_is_reproduced_with_a_new_seed_or_not(
    project: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Project.open(ALONE)
    results = [
        run_trial(opened.trial("scratch", seed), "default", f"scratch/{seed}", judged=True)
        for seed in opened.params.seeds
    ]
    losses = [result.record.summary["heldout_loss"] for result in results]
    status = run("reproduce", "scratch", "--json")
    found = json.loads(capsys.readouterr().out)
    measured = found["measures"][0]
    assert (found["row"], found["seed"]) == ("default/scratch", 2)
    assert (measured["low"], measured["high"]) == pytest.approx(prediction_interval(losses))
    assert status == (0 if measured["low"] <= measured["value"] <= measured["high"] else 1)

    for result, factor in zip(results, (2, 2.01), strict=True):  # a row that this code does not reproduce
        summary = result.record.summary | {"heldout_loss": factor * losses[0]}
        write_record(project, replace(result.record, summary=summary), result.machine)
    assert run("reproduce", "scratch") == 1
    assert "lies outside of the 95 % prediction interval" in capsys.readouterr().out

    assert run("reproduce", "scratch", "--seed", 1) == 2
    assert "seed 1: one of the row's own; allowed: any other than 0, 1" in capsys.readouterr().err
    changed: Record = replace(results[0].record, identity="0" * 16)
    write_record(project, changed, results[0].machine)
    assert run("reproduce", "scratch") == 2
    assert "scratch/0 is of other settings, data or numerics" in capsys.readouterr().err
