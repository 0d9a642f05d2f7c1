"""Every profile against the real size of its data set, through the checks of all stages, without the data."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maskdm.config.reading import load_params, recipe_of
from maskdm.datasets.prepared import PreparedData
from maskdm.datasets.raw import RawImages
from maskdm.datasets.split import split_sizes
from maskdm.engine.project import Project
from maskdm.engine.searching import check
from maskdm.evaluation.metrics import check_reference, floor_counts
from maskdm.runtime.processes import ALONE
from maskdm.training.plan import plan_finetune
from tests.imports import PROJECT

# What the published data sets hold: training images, and those of a held-out split of their own.
SIZES = {
    "fashion_mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "digits": (1_797, 0),
    "celeba": (162_770, 19_867 + 19_962),
    "celebahq": (30_000, 0),
    "lsun_church": (126_227, 0),
}


@pytest.mark.parametrize("path", sorted((PROJECT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_passes_all_checks_of_its_data_sets_size(path: Path) -> None:
    params = load_params(path)
    if params.data.name == "image_folder":
        pytest.skip("of the user's own images: `maskdm init` has counted them")
    recipe = recipe_of(params, PROJECT)
    of_training, own = SIZES[params.data.name]
    raw = RawImages("made up", {}, of_training + own, read=lambda _: pytest.fail("no image is looked at"))
    if own:
        raw = replace(raw, heldout=np.arange(raw.count) >= of_training)
    train, heldout = split_sizes(raw, params.data)
    evaluation = params.evaluation
    check_reference(evaluation, train)
    assert sum(floor_counts(evaluation, train, heldout)) >= min(evaluation.samples, 1000), (
        "a floor of fewer says little"
    )
    assert heldout >= params.heldout.images
    for arm in params.arms:
        assert math.isfinite(plan_finetune(params, recipe, arm).step_flops)
    data = PreparedData(np.empty(0), None, {"name": params.data.name})
    check(Project(params, recipe, data, torch.device("cpu"), ALONE))
