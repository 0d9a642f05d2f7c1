import copy
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch

from maskdm.config.masks import CropMask
from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.engine.advice import Advice, Advised, advise, in_words, step_costs, tokens_of
from maskdm.engine.agreement import compared, measured_gains
from maskdm.engine.context import Context
from maskdm.runtime.errors import MaskDMError
from maskdm.tracking.records import Record, write_record
from maskdm.training.plan import arm_plans
from tests.tracking.test_records import MACHINE, RECORD


@pytest.fixture
def prepared(data: PreparedData) -> PreparedData:
    return replace(data, info=data.info | {"name": "digits"})


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


def test_data_of_other_settings_is_refused(params: Params, data: PreparedData) -> None:
    with pytest.raises(MaskDMError, match=r"holds levels of shape .* the settings say digits"):
        tokens_of(params, data)


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
