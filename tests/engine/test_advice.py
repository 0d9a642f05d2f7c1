import copy
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch

from maskdm import cli
from maskdm.config.masks import CropMask
from maskdm.config.params import Params
from maskdm.config.reading import load_params, load_recipe
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepare import prepare as prepare_data
from maskdm.datasets.prepared import PreparedData
from maskdm.engine.advice import Advice, Advised, advise, in_words, step_costs, tokens_of
from maskdm.engine.agreement import agreement, compared, measured_gains
from maskdm.engine.context import Context, TokenCovariance
from maskdm.runtime.errors import MaskDMError
from maskdm.tracking.records import Record, write_record
from maskdm.training.plan import arm_plans
from tests.imports import PROJECT
from tests.tracking.test_records import MACHINE, RECORD


@pytest.fixture
def prepared(data: PreparedData) -> PreparedData:
    return replace(data, info=data.info | {"name": "digits", "source": "made up"})


@pytest.fixture
def advice(params: Params, recipe: Recipe, prepared: PreparedData) -> Advice:
    return advise(params, recipe, tokens_of(params, prepared))


def test_masks_come_in_the_order_of_context_lost_for_compute_saved(advice: Advice) -> None:
    losses = [found.loss_per_saving for found in advice.masks]
    assert losses == sorted(losses)
    assert all(0 < found.cost < 1 <= found.context.heldout for found in advice.masks)


def test_no_mask_of_the_front_is_beaten_and_every_other_one_is(advice: Advice) -> None:
    for found in advice.masks:
        better = [o for o in advice.masks if o.cost <= found.cost and o.context.heldout < found.context.heldout]
        assert (found in advice.front) == (not better)


def test_the_arms_own_masks_are_among_them(advice: Advice, params: Params) -> None:
    asked = {phase.mask for phases in params.arms.values() for phase in phases if phase.mask}
    assert asked <= {found.mask for found in advice.masks}


def test_a_step_costs_what_the_plan_counts(params: Params, recipe: Recipe) -> None:
    masked, dense = arm_plans(params, recipe, "patch75")
    assert masked.mask is not None
    [cost] = step_costs(params, recipe, [masked.mask])
    step = dense.batch_size * masked.flops_per_image + masked.optimizer_flops
    assert cost == pytest.approx(step / dense.step_flops)


def test_the_table_has_a_line_for_each_mask_and_says_that_it_is_a_bound(advice: Advice, params: Params) -> None:
    text = in_words(advice, params)
    table, words = text.split("\n\n")
    assert len(table.splitlines()) == 1 + len(advice.masks)
    assert "A bound, not a forecast" in words
    assert "2x2 -> 3x3" in words


@pytest.mark.parametrize(("key", "value"), [("name", "cifar10"), ("shape", [3, 8, 8]), ("source", "folder /other")])
def test_images_of_other_settings_are_refused(params: Params, prepared: PreparedData, key: str, value: object) -> None:
    there = params.data.model_copy(update={"root": "/mine"})
    own = params.model_copy(update={"data": there})
    kept = replace(prepared, info=prepared.info | {"source": "folder /mine"})
    assert tokens_of(own, kept).images == 192
    with pytest.raises(MaskDMError, match=r"data/prepared holds .* the settings say digits"):
        tokens_of(own, replace(kept, info=kept.info | {key: value}))


def found(crop: int, cost: float, ratio: float, removed: float = 0.75) -> Advised:
    alone = torch.tensor([ratio])
    return Advised(CropMask(strategy="crop", crop=crop), removed, cost, Context(alone, torch.ones(1), torch.ones(1)))


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
    tokens = TokenCovariance.of(images, 4, dims=128)
    assert agreement(params, recipe, tokens, "of-these", tmp_path) is None
    for place, arm in enumerate(("scratch", "control", "crop3", "crop4", "crop6")):
        for seed in (1, 2):
            own = replace(RECORD, stage="study", key=f"masks/{arm}-seed{seed}", arm=arm, params={"seed": seed})
            own = replace(own, data=RECORD.data | {"sha256": "of-these"}, summary={"heldout_loss": 0.1 + place / 100})
            write_record(tmp_path, own, MACHINE)
    found = agreement(params, recipe, tokens, "of-these", tmp_path)
    assert found is not None
    assert found.of_halves == pytest.approx(1)
    assert found.masks == 3  # scratch and the control have no mask to judge
    assert agreement(params, recipe, tokens, "of-others", tmp_path) is None


def test_measured_gains_pair_seeds(tmp_path: Path) -> None:
    losses = {"scratch": (0.1, 0.2), "crops": (0.09, 0.16)}
    for arm, by_seed in losses.items():
        for seed, loss in enumerate(by_seed):
            record: Record = copy.deepcopy(RECORD)
            params = record.params | {"seed": seed, "train_flops": 6e12}
            own = replace(
                record, stage="default", key=f"{arm}/{seed}", arm=arm, params=params, summary={"heldout_loss": loss}
            )
            write_record(tmp_path, own, MACHINE)
    [line] = measured_gains(tmp_path, "scratch")
    gain = 100 * (mean([0.9, 0.8]) - 1)
    assert line.startswith(f"crops: held-out loss {gain:+.1f} % (-20.0 to -10.0, 2 seeds) against scratch")
    assert measured_gains(tmp_path, "other") == []


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
