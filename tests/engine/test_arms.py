"""The arms that are proposed, by the settings' own checks."""

from typing import Any

import pytest

from maskdm.config.masks import mask_name
from maskdm.config.params import Params
from maskdm.config.reading import load_params
from maskdm.engine.arms import masks_to_try, proposed_arms
from tests.imports import PROJECT


@pytest.mark.parametrize("side", [4, 8, 16, 32])
@pytest.mark.parametrize("batch_size", [8, 32, 128])
def test_arms_fit_every_grid_and_batch(settings: dict[str, Any], side: int, batch_size: int) -> None:
    settings["data"] |= {"image_size": 2 * side}
    settings |= {"arms": proposed_arms(side, batch_size), "controls": {"control": "crops"}}
    settings["search"]["space"] |= {"blocks": [2], "crops": [2]}
    params = Params.model_validate(settings)
    crops = params.arms["crops"][:-1]
    assert sum(phase.share or 0 for phase in crops) == pytest.approx(0.65)
    sides = [phase.mask.crop for phase in crops if phase.mask and phase.mask.strategy == "crop"]
    assert sides == sorted(set(sides))
    assert len(sides) == len(crops) >= 2


def test_on_the_default_grid_they_are_those_of_the_default() -> None:
    default = load_params(PROJECT / "profiles" / "default.yaml")
    proposed = default.model_dump() | {"arms": proposed_arms(8, 32)}
    assert Params.model_validate(proposed).arms == default.arms


@pytest.mark.parametrize("side", [4, 8, 16, 32])
def test_masks_to_try_are_of_every_kind_and_all_different(side: int) -> None:
    masks = masks_to_try(side)
    assert {mask.strategy for mask in masks} == {"crop", "block", "patch", "stratified"}
    assert len({mask_name(mask) for mask in masks}) == len(masks)
    assert all(0 < mask.num_keep((side, side)) < side**2 for mask in masks)
