"""Where the numbers come from."""

from dataclasses import replace
from typing import Any

import numpy as np

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.reporting.analysis import Records
from maskdm.reporting.provenance import Source, sources
from maskdm.reporting.report import Default
from tests.comparison import DATASET, RECIPE, REFERENCE, analysed, make_records, make_times, settings

PARAMS = Params.model_validate(settings())
CPU = {"device": "cpu", "cpu": "a CPU", "cores": 2}


def found(records: Records, search: Records = ()) -> dict[str, Source]:
    """The sources of the default comparison, by their file."""
    images = PreparedData(np.empty(0), None, DATASET)
    opened = Default(Recipe.model_validate(RECIPE), images, records, make_times(PARAMS), REFERENCE, analysed(PARAMS))
    return {source.file: source for source in sources(opened, [], [], search)}


def made(records: Records, **by_seed: dict[str, Any]) -> Records:
    """The records with other machine parts: `s3={...}` of seed 3."""
    return [
        (record, machine and replace(machine, **by_seed.get(f"s{record.params['seed']}", {})))
        for record, machine in records
    ]


def test_all_commits_machines_and_days_of_an_arm_are_named() -> None:
    old = {"git": {"commit": "aaaaaaaaaa", "dirty": False}, "hardware": CPU}
    new = {"git": {"commit": "bbbbbbbbbb", "dirty": True}, "hardware": CPU | {"device": "a GPU"}}
    records = made(make_records(PARAMS), s1=old, s2=old, s3=new | {"started_at": "2025-02-03T00:00:00+00:00"}, s4=old)
    source = found(records)["records/default/crop3.jsonl"]
    assert source.commits == "aaaaaaa, bbbbbbb with changes"
    assert source.machine == "a CPU, 2 cores, a GPU; 2025-01-01, 2025-02-03"
    assert source.seeds == "1, 2, 3, 4"
    assert source.command == "dvc repro evaluate@crop3"


def test_what_is_not_known_is_a_dash() -> None:
    source = found([(record, None) for record, _ in make_records(PARAMS)])["records/default/crop3.jsonl"]
    assert (source.commits, source.machine) == ("-", "-")


def test_a_search_without_records_has_no_source() -> None:
    records = make_records(PARAMS)
    assert "records/search/" not in found(records)
    assert found(records, records[:2])["records/search/"].seeds == "1, 2"
