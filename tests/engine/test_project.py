from pathlib import Path

import pytest

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.engine.launch import chosen_key
from maskdm.engine.project import exclusive, mask_params, plan_as_json
from maskdm.runtime.errors import MaskDMError
from maskdm.training.plan import plan_finetune, plan_pretrain


def test_a_work_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "finetune-scratch" / "1234"
    with exclusive(folder), pytest.raises(MaskDMError, match="another process is at this stage"), exclusive(folder):
        pass
    with exclusive(folder):
        assert folder.is_dir()


@pytest.mark.parametrize("arguments", [[], ["x"], ["a", "b"]])
def test_a_wrong_key_is_answered_with_the_known_ones(arguments: list[str]) -> None:
    with pytest.raises(MaskDMError, match="allowed: one of a, b"):
        chosen_key(arguments, ["a", "b"])


def test_every_run_has_the_same_names_for_its_mask(params: Params, recipe: Recipe) -> None:
    patch, (block, crop) = plan_pretrain(params, recipe, "patch75")[0], plan_pretrain(params, recipe, "staged")
    found = {plan.mask.strategy if plan.mask else "none": mask_params(plan) for plan in (patch, block, crop)}
    assert found["patch"] == {
        "method": "drop", "mask.strategy": "patch", "mask.ratio": 0.75, "mask.effective_ratio": 0.75, "mask.size": 1,
        "mask.positions": True, "mask.handover": "state",
    }  # fmt: skip
    assert found["block"]["mask.size"] == 2
    assert found["crop"]["mask.ratio"] == pytest.approx(1 - 9 / 16)
    whole = mask_params(plan_finetune(params, recipe, "scratch"))
    assert {name: type(value) for name, value in whole.items()} == {
        name: type(value) for name, value in found["crop"].items()
    }


def test_a_plans_fingerprint_tells_masks_of_equal_ratio_apart(params: Params, recipe: Recipe) -> None:
    patch, (block, _) = plan_pretrain(params, recipe, "patch75")[0], plan_pretrain(params, recipe, "staged")
    assert plan_as_json(patch)["mask"] != plan_as_json(block)["mask"]
