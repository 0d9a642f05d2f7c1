import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maskdm.config.masks import PatchMask
from maskdm.config.method import Group
from maskdm.config.params import BUDGET_TOLERANCE, Params
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.methods.drop import DROP
from maskdm.methods.method import Trainee
from maskdm.networks.uvit import UViT
from maskdm.runtime.errors import MaskDMError
from maskdm.training.loop import PhaseTrainer
from maskdm.training.objective import make_objective
from maskdm.training.optimizers import learning_rate
from maskdm.training.plan import PhasePlan, build_network, group_flops, plan_finetune, plan_pretrain
from tests.conftest import PARAMS, RECIPE


def all_phases(params: Params, recipe: Recipe, arm: str) -> list[PhasePlan]:
    return [*plan_pretrain(params, recipe, arm), plan_finetune(params, recipe, arm)]


def kept(tokens: int) -> Group:
    """Of a grid of 16."""
    return Group(1, PatchMask(strategy="patch", ratio=1 - tokens / 16) if tokens < 16 else None)


@pytest.mark.parametrize("tokens", [3, 16])
def test_flops_are_those_of_the_matrix_products_written_out(network: UViT, tokens: int) -> None:
    d, length, patch = 16, tokens + 1, 4
    block = length * (3 * d * d + d * d + 8 * d * d) + 2 * length * length * d  # qkv, proj, mlp; scores and values
    forward = 3 * block + length * 2 * d * d + tokens * (patch * d + d * patch)  # skip; embedding and head
    # Backward costs twice the forward, but nothing needs the gradient with respect to the image.
    assert group_flops(Trainee(network, DROP), kept(tokens)) == 2 * (3 * forward - tokens * patch * d)


def test_the_count_equals_the_counter_on_a_real_step(network: UViT) -> None:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(torch.randn(5, 16, 4), torch.zeros(5, dtype=torch.long)).sum().backward()
    assert counter.get_total_flops() == 5 * group_flops(Trainee(network, DROP), Group(1))


@pytest.mark.parametrize("arm", ["scratch", "patch75", "staged"])
def test_all_arms_spend_the_same_budget(params: Params, recipe: Recipe, arm: str) -> None:
    phases = all_phases(params, recipe, arm)
    total = phases[-1].train_flops(phases[-1].steps)
    assert total == pytest.approx(
        params.budget.train_flops, rel=BUDGET_TOLERANCE / 2
    )  # of two arms, one above, one below
    network = build_network(params.model, params.data, None)
    spent = sum(
        phase.steps * phase.batch_size * group_flops(Trainee(network, DROP), Group(1, phase.mask)) for phase in phases
    )
    assert phases[-1].train_flops(phases[-1].steps) == pytest.approx(spent)


# Budgets that whole steps of all arms meet; Muon's are longer.
@pytest.fixture(scope="module", params=[("adamw", 1e9), ("muon", 1.12e9)], ids=["adamw", "muon"])
def spent(request: pytest.FixtureRequest) -> dict[str, list[tuple[int, PhasePlan]]]:
    """FLOPs that torch counts over every step of every phase of the real trainer, by arm, beside the phase's plan."""
    optimizer, train_flops = request.param
    raw = {**PARAMS, "budget": {"train_flops": train_flops, "snapshots": [1.0]}}
    optimisation = RECIPE["optimisation"] | {"optimizer": optimizer}
    params, recipe = Params.model_validate(raw), Recipe.model_validate(RECIPE | {"optimisation": optimisation})
    return {arm: [(count_flops(plan, params), plan) for plan in all_phases(params, recipe, arm)] for arm in params.arms}


def count_flops(plan: PhasePlan, params: Params) -> int:
    """What the counter sees of a whole phase: forward and backward, and whatever else the step multiplies."""
    objective = make_objective(Recipe.model_validate(RECIPE).objective)
    unread = PreparedData(np.empty(0), None, {})  # the steps are handed their batch
    trainer = PhaseTrainer(
        build_network(params.model, params.data, None),
        objective,
        unread,
        plan,
        lambda _: 0.0,
        0,
        Path(),
        lambda _: None,
    )
    images = torch.randint(256, (plan.batch_size, 1, 8, 8), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for _ in range(plan.steps):
            trainer.train_step(images, None)
    return counter.get_total_flops()


def test_every_phase_spends_what_its_plan_says_to_the_last_flop(spent: dict[str, list[tuple[int, PhasePlan]]]) -> None:
    assert [len(phases) for phases in spent.values()] == [1, 2, 3]  # whole, patches, blocks then crops
    for counted, plan in itertools.chain(*spent.values()):
        assert counted == plan.train_flops(plan.steps) - plan.start_flops


def test_arms_that_claim_equal_compute_are_counted_equal(spent: dict[str, list[tuple[int, PhasePlan]]]) -> None:
    totals = [sum(counted for counted, _ in phases) for phases in spent.values()]
    assert max(totals) / min(totals) - 1 < BUDGET_TOLERANCE


def test_phases_follow_each_other_without_a_gap(params: Params, recipe: Recipe) -> None:
    phases = all_phases(params, recipe, "staged")
    assert [phase.index for phase in phases] == [0, 1, 2]
    assert phases[0].start_images == phases[0].start_flops == 0
    for before, after in itertools.pairwise(phases):
        assert after.start_images == before.images_seen(before.steps)
        assert after.start_flops == before.train_flops(before.steps)


@settings(deadline=None, max_examples=8)
@given(snapshots=st.lists(st.floats(0.05, 0.95), max_size=4, unique=True), points=st.integers(1, 20))
def test_every_snapshot_and_point_falls_into_one_phase(snapshots: list[float], points: int) -> None:
    raw: dict[str, Any] = {**PARAMS, "heldout": {"images": 32, "points": points}}
    raw["budget"] = {"train_flops": 2e9, "snapshots": [*sorted(snapshots), 1.0]}
    params, recipe = Params.model_validate(raw), Recipe.model_validate(RECIPE)
    phases = all_phases(params, recipe, "staged")
    found = [share for phase in phases for share in phase.snapshot_steps.values()]
    assert found == sorted(found)
    assert set(found) <= set(snapshots)
    for phase in phases:
        assert phase.heldout_steps[-1] == phase.steps
        for step, share in phase.snapshot_steps.items():
            flops = share * params.budget.train_flops
            assert phase.train_flops(step - 1) < flops * (1 + 1e-6)
            assert phase.train_flops(step) >= flops * (1 - 1e-6)


def test_an_arm_may_be_masked_all_the_way(settings: dict[str, Any], recipe: Recipe) -> None:
    settings["arms"]["patch75"][0]["share"] = 1.0
    assert plan_finetune(Params.model_validate(settings), recipe, "patch75").steps == 0


def test_a_budget_too_small_for_whole_steps_is_rejected(settings: dict[str, Any], recipe: Recipe) -> None:
    settings["budget"]["train_flops"] = 1e7
    with pytest.raises(
        MaskDMError, match=r"budget\.train_flops=1e\+07: .* scratch miss it by 6\.[0-9]+%; allowed: 0\.25%"
    ):
        plan_finetune(Params.model_validate(settings), recipe, "scratch")


def test_dropping_labels_needs_labels_and_guidance_needs_dropped_labels(
    settings: dict[str, Any], recipe: Recipe
) -> None:
    settings["arms"]["patch75"][0]["override"] = {"label_dropout": 0.1}
    with pytest.raises(MaskDMError, match=r"^label_dropout=0\.1 with model\.class_conditional=false; allowed: 0$"):
        plan_pretrain(Params.model_validate(settings), recipe, "patch75")
    settings["model"]["class_conditional"] = True
    assert plan_pretrain(Params.model_validate(settings), recipe, "patch75")[0].optimisation.label_dropout == 0.1
    settings["sampling"]["guidance_scale"] = 2.0
    says = r"^sampling\.guidance_scale=2 with label_dropout=0 in the last phase of arm patch75; allowed: 1, or "
    with pytest.raises(MaskDMError, match=says):
        plan_finetune(Params.model_validate(settings), recipe, "patch75")
    settings["arms"]["patch75"][1]["override"] = {"label_dropout": 0.1}
    assert plan_finetune(Params.model_validate(settings), recipe, "patch75").optimisation.label_dropout == 0.1


def test_a_phase_overrides_the_recipe(settings: dict[str, Any], recipe: Recipe) -> None:
    settings["arms"]["patch75"][-1]["override"] = {"lr": 1e-5}
    params = Params.model_validate(settings)
    assert plan_finetune(params, recipe, "patch75").optimisation.lr == 1e-5
    assert plan_pretrain(params, recipe, "patch75")[0].optimisation == recipe.optimisation


def test_phases_that_hand_over_their_state_have_one_schedule(params: Params, recipe: Recipe) -> None:
    optimisation = recipe.optimisation.model_copy(update={"lr": 1.0, "warmup": 0.1, "decay": 0.5})
    phases = all_phases(params, recipe.model_copy(update={"optimisation": optimisation}), "staged")
    assert [phase.goes_on for phase in phases] == [False, True, True]
    budget = params.budget.train_flops
    for phase in phases:
        for step in range(1, phase.steps + 1):
            done = phase.train_flops(step) / budget  # at the end of the step; the fall counts from its beginning
            fall = (1 - done + phase.step_flops / budget) / 0.5
            expected = min(1.0, done / 0.1, fall)
            assert learning_rate(optimisation, *phase.schedule_place(step)) == pytest.approx(expected, abs=0.01)


def test_a_phase_that_hands_over_weights_ends_the_schedule(params: Params, recipe: Recipe) -> None:
    first, second, finetune = PARAMS["arms"]["staged"]
    staged = {"staged": [first, second | {"handover": "weights"}, finetune]}
    changed = Params.model_validate(PARAMS | {"arms": PARAMS["arms"] | staged})
    block, crop, last = all_phases(changed, recipe, "staged")
    assert crop.goes_on
    assert not last.goes_on
    assert last.schedule_offset == 0.0
    assert last.schedule_steps == pytest.approx(last.steps, abs=0.5)
    end = crop.train_flops(crop.steps)
    for phase in (block, crop):
        assert phase.schedule_offset * phase.step_flops == pytest.approx(phase.start_flops)
        assert phase.schedule_steps * phase.step_flops == pytest.approx(end, rel=0.02)


def test_a_recipe_that_hands_over_weights_gives_every_phase_a_schedule_of_its_own(
    params: Params, recipe: Recipe
) -> None:
    recipe = recipe.model_copy(update={"handover": "weights"})
    for arm in params.arms:
        for phase in all_phases(params, recipe, arm):
            assert not phase.goes_on
            assert phase.schedule_steps == pytest.approx(phase.steps, abs=1.0)


def test_state_is_not_handed_to_another_optimiser(params: Params, recipe: Recipe) -> None:
    finetune = {"batch_size": 8, "override": {"optimizer": "muon"}}
    changed = PARAMS | {"arms": PARAMS["arms"] | {"staged": [*PARAMS["arms"]["staged"][:-1], finetune]}}
    with pytest.raises(MaskDMError, match="handover=state from optimizer=adamw to muon; allowed: one optimizer"):
        plan_finetune(Params.model_validate(changed), recipe, "staged")
