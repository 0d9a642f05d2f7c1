"""Training on a prepared array of several times the memory."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.memory import bounded

TRAIN = """
import torch
from dataclasses import replace
from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.engine.project import initial_network
from maskdm.training.loop import PhaseTrainer, make_heldout_loss
from maskdm.training.objective import make_objective
from maskdm.training.plan import plan_finetune
from tests.conftest import PARAMS, RECIPE
sizes = {"data": PARAMS["data"] | {"image_size": 64, "channels": 3}, "model": PARAMS["model"] | {"patch_size": 16}}
params, recipe = Params.model_validate(PARAMS | sizes).trial("scratch", 0), Recipe.model_validate(RECIPE)
plan = replace(plan_finetune(params, recipe, "scratch"), batch_size=256, steps=40, heldout_steps=(40,))
network, objective = initial_network(params, None), make_objective(recipe.objective)
limit()
data = PreparedData.open(Path("prepared"))
heldout = make_heldout_loss(network, objective, data, 8, 0, torch.device("cpu"))
PhaseTrainer(network, objective, data, plan, heldout, 0, Path("work"), lambda _: None).run()
"""


@pytest.mark.slow
def test_an_array_of_several_times_the_memory_is_trained_on(tmp_path: Path) -> None:
    """The array is a file of holes, which takes no room on the disk: 2 GB against 400 MB."""
    count, shape = 170_000, [3, 64, 64]
    (tmp_path / "prepared").mkdir()
    np.lib.format.open_memmap(tmp_path / "prepared" / "images.npy", "w+", np.uint8, (count, *shape))
    info = {"name": "holes", "source": "", "files": {}, "train": count - 64, "heldout": 64, "shape": shape}
    info |= {"num_classes": None, "class_names": None, "sha256": "", "skipped": []}
    (tmp_path / "prepared" / "dataset.json").write_text(json.dumps(info))
    bounded(TRAIN, tmp_path, 400)
    assert (tmp_path / "work").exists()
