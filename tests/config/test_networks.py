"""The block `model`: one of several networks, told apart by its name."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

import maskdm
from maskdm.config.params import Params
from maskdm.config.reading import load_params, load_recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.engine.project import Project
from maskdm.engine.searching import check
from maskdm.engine.trial import trial_identity
from maskdm.networks.catalogue import NETWORKS
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.processes import ALONE
from maskdm.search import paper_phases
from maskdm.training.plan import arm_plans, build_network
from tests.conftest import MODELS, PARAMS
from tests.imports import PROJECT

CROPS = [{"mask": {"strategy": "crop", "crop": 3}, "share": 0.2, "batch_size": 16}, {"batch_size": 8}]
SPACE = PARAMS["search"]["space"] | {"strategies": ["crop"], "crops": [1, 2, 3], "max_phases": 1}


def settings_of(kind: str, **changes: Any) -> dict[str, Any]:
    """Settings of a network, whose masks all networks can see; `changes` are those of the block `model`."""
    arms = {"scratch": PARAMS["arms"]["scratch"], "staged": CROPS}
    return PARAMS | {"model": MODELS[kind] | changes, "arms": arms, "search": PARAMS["search"] | {"space": SPACE}}


def project_of(params: Params, data: dict[str, Any]) -> Project:
    unread = PreparedData(np.empty(0), None, data)
    return Project(params, load_recipe(params.recipe, PROJECT), unread, torch.device("cpu"), ALONE)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_built_from_its_settings_alone(name: str) -> None:
    params = Params.model_validate(settings_of(name, class_conditional=True))
    assert params.model.name == name
    wanted = set(inspect.signature(NETWORKS[name]).parameters) - {"image_size", "in_channels", "num_classes"}
    assert set(params.model.sizes()) == wanted
    network = build_network(params.model, params.data, num_classes=4)
    assert type(network) is NETWORKS[name]
    assert (network.grid, network.token_dim, network.num_classes) == ((4, 4), 4, 4)


def test_a_block_without_a_name_is_a_uvits() -> None:
    assert "name" not in PARAMS["model"]
    assert Params.model_validate(PARAMS).model == Params.model_validate(settings_of("uvit", name="uvit")).model


def test_networks_of_equal_sizes_are_not_one_trial() -> None:
    data = {"sha256": "0" * 64, "train": 192, "heldout": 64, "shape": [1, 8, 8]}
    params = {name: Params.model_validate(settings_of(name, depth=3)) for name in ("uvit", "dit")}
    found = {trial_identity(project_of(each.trial("staged", 0), data), judged=True) for each in params.values()}
    assert len(found) == 2


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("uvit", {"name": "vit"}, "model.name=vit; allowed: uvit, dit, unet"),
        ("uvit", {"depth": 4}, "model: depth=4; allowed: an odd number"),
        ("uvit", {"num_heads": 16}, "model: embed_dim=16; allowed: an even multiple of num_heads=16"),
        ("uvit", {"layers_per_block": 1}, "model.layers_per_block is not a known key"),
        ("dit", {"num_heads": 3}, "model: num_heads=3 does not divide embed_dim=16"),
        ("dit", {"patch_size": 3}, "model.patch_size=3 does not divide data.image_size=8"),
        ("unet", {"embed_dim": 16}, "model.embed_dim is not a known key"),
        ("unet", {"block_out_channels": []}, "model.block_out_channels=[]"),
        ("unet", {"block_out_channels": [8, 6]}, "model: block_out_channels=[8, 6]; allowed: multiples of 4"),
        ("unet", {"attention_levels": [2]}, "model: attention_levels=[2]; allowed: ascending, of [0, 1]"),
        ("unet", {"attention_levels": [1, 0]}, "model: attention_levels=[1, 0]; allowed: ascending, of [0, 1]"),
        ("unet", {"block_out_channels": [8] * 5}, "data.image_size=8; allowed: a multiple of 16 pixels"),
        (
            "unet",
            {"block_out_channels": [8] * 3},
            "arms.staged[0].mask.crop=3 is 6 pixels a side; allowed: a multiple of 4 pixels, as "
            "model.block_out_channels has 3 levels",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_key_value_and_what_is_allowed(
    tmp_path: Path, name: str, changes: dict[str, Any], says: str
) -> None:
    with (tmp_path / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(settings_of(name, **changes), file)
    with pytest.raises(MaskDMError) as caught:
        load_params(tmp_path / "params.yaml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strategy", ["patch", "block"])
def test_scattered_masks_are_refused_for_a_convolution(strategy: str) -> None:
    mask = {"strategy": strategy, "ratio": 0.75} | ({"block": 2} if strategy == "block" else {})
    settings = settings_of("unet")
    settings["arms"]["other"] = [{"mask": mask, "share": 0.2, "batch_size": 16}, {"batch_size": 8}]
    with pytest.raises(
        ValueError, match=rf"arms\.other\[0\]\.mask\.strategy={strategy} with model\.name=unet; .*: crop"
    ):
        Params.model_validate(settings)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_arms_of_every_network_spend_the_same_compute(name: str) -> None:
    params = Params.model_validate(settings_of(name) | {"budget": {"train_flops": 2e10, "snapshots": [1.0]}})
    recipe = load_recipe(params.recipe, PROJECT)
    for arm in params.arms:
        plan = arm_plans(params, recipe, arm)[-1]
        assert plan.train_flops(plan.steps) == pytest.approx(2e10, rel=0.0025)


def test_a_search_proposes_only_what_the_network_can_see() -> None:
    def found(**space: Any) -> None:
        settings = settings_of("unet")
        settings["search"] = settings["search"] | {"train_flops": 1e11, "space": SPACE | space}
        check(project_of(Params.model_validate(settings), {}))

    found()
    with pytest.raises(MaskDMError, match=r"^search\.space .*mask\.strategy=patch with model\.name=unet; "):
        found(strategies=["crop", "patch"])


def test_in_a_space_of_crops_the_papers_default_is_the_crop_nearest_to_90_percent() -> None:
    params = Params.model_validate(settings_of("unet"))
    (phase,) = paper_phases(params.search.space, params.grid, params.search.finetune)
    assert phase.mask is not None
    assert phase.mask.num_keep(params.grid) == 1  # 94 % of 16 tokens are removed, by the next one 75 %


def test_the_library_offers_every_network() -> None:
    assert sorted(maskdm.__all__) == sorted(kind.__name__ for kind in NETWORKS.values())
    assert [getattr(maskdm, kind.__name__) for kind in NETWORKS.values()] == [*NETWORKS.values()]
    with pytest.raises(AttributeError, match="module maskdm has no attribute Mamba"):
        _ = maskdm.Mamba


def test_the_report_names_the_network() -> None:
    assert [Params.model_validate(settings_of(name)).model.in_words() for name in NETWORKS] == [
        "U-ViT, width 16, 3 blocks, 2 heads",
        "DiT, width 16, 2 blocks, 2 heads",
        "U-Net, 8, 16 channels, 1 blocks a level, attention at level 1",
    ]
