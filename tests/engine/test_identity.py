"""Committed records are found by the identity of their trial: an edit that loses them would train them all again."""

import numpy as np
import pytest
import torch

from maskdm.config.params import Params
from maskdm.config.reading import load_params, load_recipe
from maskdm.config.study import DEFAULT, load_study
from maskdm.datasets.prepared import PreparedData
from maskdm.engine.project import Project
from maskdm.engine.trial import trial_identity
from maskdm.runtime.processes import ALONE
from maskdm.tracking.records import Record, Stage, read_records
from tests.imports import PROJECT


@pytest.fixture(scope="module")
def comparisons() -> dict[str, Params]:
    """The settings of `params.yaml` and of every part of the study, by name."""
    params = load_params(PROJECT / "params.yaml")
    study = load_study(PROJECT / "study" / "params.yaml")
    return {DEFAULT: params} | {name: study.params(name, params) for name in study.all_parts}


def identity_of(params: Params, record: Record) -> str:
    """What the trial of a record is known by today."""
    recipe = load_recipe(params.recipe, PROJECT)
    data = PreparedData(np.empty(0), None, record.data)
    project = Project(params, recipe, data, torch.device("cpu"), ALONE)
    return trial_identity(project.trial(record.arm, record.params["seed"]), judged=True)


@pytest.mark.parametrize("stage", ["default", "study"])
def test_committed_records_are_found_by_their_identity(stage: Stage, comparisons: dict[str, Params]) -> None:
    records = [record for record, _ in read_records(PROJECT, (stage,))]
    lost = []
    for record in records:
        params = comparisons[DEFAULT if stage == "default" else record.key.split("/")[0]]
        if any(phase.set for phases in params.arms.values() for phase in phases):
            continue  # other data sets of its comparison, which the record does not name
        if identity_of(params, record) != record.identity:
            lost.append(record.key)
    assert records
    assert not lost
