"""Settings and data small enough for tests that run in seconds."""

import copy
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.networks.uvit import UViT
from maskdm.training.objective import Objective, make_objective
from tests.denoisers import OBJECTIVES, objective_settings
from tests.servers import postgres

torch.set_num_threads(1)  # networks this small get no faster with two, and much slower on a busy machine

PARAMS: dict[str, Any] = {
    "seeds": [0, 1],
    "recipe": "v",
    "data": {
        "name": "digits",
        "root": None,
        "image_size": 8,
        "channels": 1,
        "holdout": 64,
        "train_images": None,
    },
    "model": {"patch_size": 2, "embed_dim": 16, "depth": 3, "num_heads": 2, "class_conditional": False},
    "budget": {"train_flops": 3e9, "snapshots": [0.5, 1.0]},
    "heldout": {"images": 32, "points": 4},
    "arms": {
        "scratch": [{"batch_size": 8}],
        "patch75": [
            {"mask": {"strategy": "patch", "ratio": 0.75}, "share": 0.25, "batch_size": 16},
            {"batch_size": 8},
        ],
        "staged": [
            {"mask": {"strategy": "block", "ratio": 0.75, "block": 2}, "share": 0.2, "batch_size": 16},
            {"mask": {"strategy": "crop", "crop": 3}, "share": 0.2, "batch_size": 16},
            {"batch_size": 8},
        ],
    },
    "baseline": "scratch",
    "controls": {},
    "sampling": {"sampler": "ddim", "num_inference_steps": 4, "eta": 0.0, "batch_size": 16},
    "evaluation": {
        "extractor": "effnet_lite0",
        "input_size": 32,
        "weights": None,
        "batch_size": 32,
        "samples": 32,
        "reference": 64,
        "kid_subsets": 4,
        "kid_subset_size": 16,
        "nearest_k": 3,
    },
    "search": {
        "seed": 0,
        "train_flops": 3e9,
        "trials": 3,
        "parallel": 2,
        "space": {
            "strategies": ["patch", "block", "crop"],
            "ratios": [0.5, 0.75],
            "blocks": [2],
            "crops": [2, 3],
            "max_phases": 2,
            "share": [0.1, 0.5],
            "batch_sizes": [8, 16],
            "lr": [2e-3, 2e-2],
        },
        "finetune": {"batch_size": 8},
        "confirm": 1,
        "confirm_seeds": [101],
    },
}

# A small network of each kind.
MODELS: dict[str, dict[str, Any]] = {
    "uvit": PARAMS["model"],
    "dit": PARAMS["model"] | {"name": "dit", "depth": 2},
    "unet": {
        "name": "unet",
        "patch_size": 2,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "attention_levels": [1],
        "class_conditional": False,
    },
}

RECIPE: dict[str, Any] = {
    "objective": {
        "name": "ddpm",
        "num_train_timesteps": 100,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
    },
    "handover": "state",
    "optimisation": {
        "optimizer": "adamw",
        "lr": 2e-3,
        "betas": [0.9, 0.99],
        "weight_decay": 0.03,
        "grad_clip": 1.0,
        "warmup": 0.05,
        "decay": 0.3,
        "ema_horizon": 0.1,
        "hflip": 0.0,
        "min_snr_gamma": None,
    },
}


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture
def settings() -> dict[str, Any]:
    """A `params.yaml` as a nested dictionary, to be changed by a test."""
    return copy.deepcopy(PARAMS)


@pytest.fixture
def params() -> Params:
    return Params.model_validate(PARAMS)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.model_validate(RECIPE)


@pytest.fixture
def network() -> UViT:
    """16 tokens of 2x2 pixels."""
    return UViT(image_size=(8, 8), patch_size=2, in_channels=1, embed_dim=16, depth=3, num_heads=2)


@pytest.fixture(params=list(OBJECTIVES))
def objective(request: pytest.FixtureRequest) -> Objective:
    """Each kind of objective in turn."""
    return make_objective(objective_settings(OBJECTIVES[request.param]))


@pytest.fixture
def data() -> PreparedData:
    return make_data()


def make_data() -> PreparedData:
    """256 random images with a structure that can be learnt: each is one grey level plus a little noise."""
    random = np.random.default_rng(0)
    levels = random.integers(0, 200, (256, 1, 1, 1))
    images = (levels + random.integers(0, 50, (256, 1, 8, 8))).astype(np.uint8)
    info = {"name": "levels", "sha256": "0" * 64, "train": 192, "heldout": 64, "shape": [1, 8, 8], "num_classes": 4}
    return PreparedData(images, levels[:, 0, 0, 0] // 50, info)


@pytest.fixture(autouse=True)
def _own_store() -> Iterator[None]:
    """No test has the tracking store of another one: MLflow itself sets this variable, for all that comes later."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of an empty database, of a server that this test starts and stops."""
    with postgres() as server:
        yield server.url


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with whole stages, which take longest: else one worker would still be at them when the others are done.

    `make test` asks pytest-xdist to keep this order.
    """
    items.sort(key=lambda item: "pipeline" not in item.path.parts)
