import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskdm import cli
from maskdm.config.comparison import Phase
from maskdm.config.masks import CropMask
from maskdm.config.params import Params
from maskdm.config.reading import load_params, load_recipe
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepare import prepare as prepare_data
from maskdm.datasets.prepared import PreparedData
from maskdm.engine.advice import Advice, Advised, advise, as_rows, explanation, open_data, step_costs
from maskdm.engine.agreement import agreement, compared
from maskdm.engine.context import Context
from maskdm.methods.coarse import Coarse
from maskdm.runtime.errors import MaskDMError
from maskdm.tracking.records import write_record
from maskdm.training.plan import arm_plans
from tests.conftest import PARAMS, RECIPE, make_data
from tests.imports import PROJECT
from tests.tracking.test_records import MACHINE, RECORD


@pytest.fixture(scope="module")
def advice() -> Advice:
    return advise(Params.model_validate(PARAMS), Recipe.model_validate(RECIPE), make_data().train)


def test_masks_come_in_the_order_of_context_lost_for_compute_saved(advice: Advice) -> None:
    losses = [found.loss_per_saving for found in advice.kinds]
    assert losses == sorted(losses)
    assert all(0 < found.cost < 1 for found in advice.kinds)
    assert all(found.context.heldout >= 1 for found in advice.kinds if found.context)


def test_no_mask_of_the_front_is_beaten_and_every_other_one_is(advice: Advice) -> None:
    judged = [(found, found.context.heldout) for found in advice.kinds if found.context]
    for found, loss in judged:
        better = [other for other, least in judged if other.cost <= found.cost and least < loss]
        assert (found in advice.front) == (not better)
    assert {id(found) for found in advice.front} <= {id(found) for found, _ in judged}


def test_the_arms_own_masks_are_among_them(advice: Advice, params: Params) -> None:
    asked = {phase.mask for phases in params.arms.values() for phase in phases if phase.mask}
    assert asked <= {found.phase.mask for found in advice.kinds}


def test_a_step_costs_what_the_plan_counts(params: Params, recipe: Recipe) -> None:
    masked, dense = arm_plans(params, recipe, "patch75")
    assert masked.mask is not None
    [cost] = step_costs(params, recipe, [Phase(batch_size=dense.batch_size, mask=masked.mask)])
    step = dense.batch_size * masked.flops_per_image + masked.optimizer_flops
    assert cost == pytest.approx(step / dense.step_flops)


def test_the_table_has_a_row_for_each_kind_and_the_words_say_that_it_is_a_bound(advice: Advice, params: Params) -> None:
    assert len(as_rows(advice)) == len(advice.kinds)
    words = "\n".join(explanation(advice, params))
    assert "A bound, not a forecast" in words
    assert "2x2 -> 3x3" in words


def test_coarse_views_are_judged_by_their_pixels_and_larger_patches_are_not_judged(advice: Advice) -> None:
    def coarse(kind: str, above: float) -> Advised:
        [found] = [
            found
            for found in advice.kinds
            if isinstance(method := found.phase.method, Coarse) and (method.kind, method.above) == (kind, above)
        ]
        return found

    half, noisy, patches = coarse("resolution", 0.0), coarse("resolution", 0.5), coarse("patch", 0.0)
    assert half.context is not None
    assert noisy.context is not None
    assert (half.removed, noisy.removed) == pytest.approx((0.75, 0.375))
    assert half.cost < noisy.cost
    assert 1 < noisy.context.heldout < half.context.heldout
    assert patches.context is None
    assert advice.kinds[-1].context is None, "what is not judged comes last"


def test_methods_that_show_groups_are_judged_and_those_with_dense_blocks_are_not(
    params: Params, recipe: Recipe, data: PreparedData
) -> None:
    methods: list[dict[str, Any]] = [
        {"name": "mixed_crops", "crops": [{"crop": 2, "share": 0.5}]},
        {"name": "sized_to_noise", "levels": [{"until": 0.5, "crop": 2}, {"until": 1.0}]},
    ]
    crop = Phase(batch_size=8, mask=CropMask(strategy="crop", crop=2))
    mixed, sized = (Phase(batch_size=8, method=method) for method in methods)
    route = Phase(batch_size=8, mask=crop.mask, method={"name": "route", "first": 1, "last": 1})
    by_phase = {
        str(found.phase): found for found in advise(params, recipe, data.train, [crop, mixed, sized, route]).kinds
    }
    whole, half, at_low_noise = (by_phase[str(phase)].context for phase in (crop, mixed, sized))
    assert whole is not None
    assert half is not None
    assert at_low_noise is not None
    assert 1 < half.heldout < whole.heldout
    assert 1 < at_low_noise.heldout < whole.heldout
    assert by_phase[str(route)].context is None


@pytest.mark.parametrize(("key", "value"), [("name", "cifar10"), ("channels", 3), ("root", "/other")])
def test_images_of_other_settings_are_refused(tmp_path: Path, params: Params, key: str, value: object) -> None:
    folder = tmp_path / "prepared"
    prepare_data(params.data, folder, tmp_path / "raw")
    assert open_data(params, folder).info["name"] == "digits"
    other = params.model_copy(update={"data": params.data.model_copy(update={key: value})})
    with pytest.raises(MaskDMError, match=r"data/prepared holds digits of .* the settings say"):
        open_data(other, folder)


def found(crop: int, cost: float, ratio: float, removed: float = 0.75) -> Advised:
    alone = torch.tensor([ratio])
    phase = Phase(batch_size=8, mask=CropMask(strategy="crop", crop=crop))
    return Advised(phase, removed, cost, Context(alone, torch.ones(1), torch.ones(1)))


def test_the_agreement_is_1_where_losses_have_the_order_of_the_advice_and_minus_1_where_they_have_the_other() -> None:
    advised = {"a": found(1, 0.5, 1.1), "b": found(2, 0.5, 1.2), "c": found(3, 0.5, 1.3, removed=0.4)}
    losses = {arm: {1: loss, 2: loss + 0.01} for arm, loss in {"a": 0.1, "b": 0.2, "c": 0.3}.items()}
    agreed = compared(advised, losses)
    assert (agreed.by_saving, agreed.by_context, agreed.of_halves) == pytest.approx((1, 1, 1))
    assert (agreed.at_equal_ratio, agreed.pairs) == (1, 1)
    turned = compared(advised, dict(zip("abc", reversed(losses.values()), strict=True)))
    assert (turned.by_context, turned.at_equal_ratio) == pytest.approx((-1, 0))
    assert turned.of_halves == pytest.approx(1)


def test_the_studys_records_of_these_images_are_what_the_advice_is_compared_with(tmp_path: Path) -> None:
    params, recipe = load_params(PROJECT / "profiles" / "default.yaml"), load_recipe("tuned", PROJECT)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "params.yaml").write_bytes((PROJECT / "study" / "params.yaml").read_bytes())
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 32, 32), dtype=np.uint8)
    assert agreement(params, recipe, images, "of-these", tmp_path) is None
    for place, arm in enumerate(("scratch", "crop3", "crop4", "crop6")):
        for seed in (1, 2):
            own = replace(RECORD, stage="study", key=f"masks/{arm}-seed{seed}", arm=arm, params={"seed": seed})
            own = replace(own, data=RECORD.data | {"sha256": "of-these"}, summary={"heldout_loss": 0.1 + place / 100})
            write_record(tmp_path, own, MACHINE)
    found = agreement(params, recipe, images, "of-these", tmp_path)
    assert found is not None
    assert found.of_halves == pytest.approx(1)
    assert found.masks == 3  # scratch has no mask to judge
    assert agreement(params, recipe, images, "of-others", tmp_path) is None


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (False, "dataset.json: no such file; the stage `prepare` writes it"),
        (True, "the settings say image_folder of shape [3, 32, 32]"),
    ],
)
def test_without_the_images_of_the_settings_the_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prepare: bool, said: str
) -> None:
    make_project(tmp_path, monkeypatch, name="image_folder" if prepare else "digits")
    if prepare:
        write_digits(tmp_path)
        capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_the_command_says_what_masks_leave_on_prepared_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path, monkeypatch, name="digits")
    write_digits(tmp_path)
    cli.main()
    said = capsys.readouterr().out
    assert "2x2 crop" in said
    assert "Computed, from 1,541 images" in said
    assert "Measured" not in said
    monkeypatch.setattr(sys, "argv", ["maskdm", "advise", "--json"])
    cli.main()
    found = json.loads(capsys.readouterr().out)
    assert {"resolution", "patch"} <= {kind["method"]["kind"] for kind in found["kinds"] if kind["method"]}
    assert (found["agreement"], found["measured"], found["expected"]) == (None, [], [])


def make_project(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for file in ("dvc.yaml", "profiles/smoke.yaml", "profiles/recipes/tuned.yaml"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes((PROJECT / file).read_bytes())
    text = (PROJECT / "profiles" / "smoke.yaml").read_text()
    if name == "image_folder":
        text = text.replace("name: digits", f"name: {name}").replace("image_size: 8", "image_size: 32")
        text = text.replace("channels: 1", "channels: 3").replace("patch_size: 2", "patch_size: 8")
    (folder / "params.yaml").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["maskdm", "advise"])


def write_digits(folder: Path) -> None:
    prepare_data(load_params(PROJECT / "profiles" / "smoke.yaml").data, folder / "data" / "prepared", folder / "raw")
