"""What every method owes: dense training where nothing is removed, the planned cost, gradients, repeatability."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maskdm.config.comparison import Phase
from maskdm.config.method import Group, allot, names
from maskdm.config.params import Params
from maskdm.config.reading import validated
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.methods.coarse import Coarse, averaged
from maskdm.methods.drop import DROP
from maskdm.methods.method import Trainee, View
from maskdm.networks.dit import DiT
from maskdm.networks.network import Network, Stream, Transformer
from maskdm.networks.patches import patchify
from maskdm.networks.uvit import UViT
from maskdm.runtime.errors import MaskDMError
from maskdm.training.loop import PhaseTrainer
from maskdm.training.plan import PhasePlan, arm_plans, build_network, group_flops, method_of
from maskdm.training.views import Views, own_parts
from tests.conftest import PARAMS
from tests.denoisers import ddpm

HALF = {"strategy": "patch", "ratio": 0.5}
QUARTER = {"strategy": "stratified", "block": 2}
PHASES: dict[str, dict[str, Any]] = {
    "drop": {"mask": HALF, "method": {"name": "drop"}},
    "mixed_crops": {"method": {"name": "mixed_crops", "crops": [{"crop": 3, "share": 0.3}, {"crop": 2, "share": 0.2}]}},
    "defer": {"mask": HALF, "method": {"name": "defer", "mixer": 1}},
    "encode_decode": {"mask": HALF, "method": {"name": "encode_decode", "decoder": 1}},
    "route": {"mask": HALF, "method": {"name": "route", "first": 1, "last": 1}},
    "sparse_dense": {"mask": QUARTER, "method": {"name": "sparse_dense", "first": 1, "last": 1, "path_drop": 0.5}},
    "coarse": {"method": {"name": "coarse", "kind": "resolution", "factor": 2}},
    "coarse, patch": {"method": {"name": "coarse", "kind": "patch", "factor": 2}},
    "coarse, patch, noisy": {"method": {"name": "coarse", "kind": "patch", "factor": 2, "above": 0.5}},
    "sized_to_noise": {
        "method": {
            "name": "sized_to_noise",
            "levels": [{"until": 0.2, "crop": 2}, {"until": 0.6, "crop": 3, "rate": 2.0}, {"until": 1.0, "factor": 2}],
        }
    },
}
MASKED = [name for name, phase in PHASES.items() if "mask" in phase]
BATCH = 24
OBJECTIVE = ddpm(100, "squaredcos_cap_v2", "v_prediction")
SIZES: dict[str, Any] = {"image_size": (8, 8), "patch_size": 2, "in_channels": 1}  # 16 tokens
SIZES |= {"embed_dim": 16, "depth": 5, "num_heads": 2}


def phase(name: str, **changes: Any) -> Phase:
    return Phase.model_validate({**PHASES[name], "share": 0.4, "batch_size": BATCH, **changes})


def plans(name: str, recipe: Recipe, last: str | None = None, *, network: Transformer) -> tuple[PhasePlan, ...]:
    """Of a phase of the method, and one of whole images or of another method."""
    end = Phase(batch_size=8) if last is None else phase(last, share=None)
    params = Params.model_validate(
        PARAMS
        | {"arms": {"arm": [phase(name), end]}, "baseline": "arm", "budget": {"train_flops": 3e10, "snapshots": [1.0]}}
        | {"model": PARAMS["model"] | {"depth": 5, "name": name_of(network)}}
    )
    return tuple(
        replace(plan, steps=4, heldout_steps=(4,), snapshot_steps={}) for plan in arm_plans(params, recipe, "arm")
    )


@pytest.fixture(params=[UViT, DiT])
def network(request: pytest.FixtureRequest) -> Transformer:
    """16 tokens of 2x2 pixels and 5 blocks, away from its symmetric start."""
    network: Transformer = request.param(**SIZES)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.1)
    return network


def name_of(network: Transformer) -> str:
    """As settings call it."""
    return "uvit" if network.has_long_skips else "dit"


def drawn(plan: PhasePlan, network: Network, share: slice = slice(0, BATCH), processes: int = 1) -> Any:
    views = Views(plan, network, OBJECTIVE, torch.device("cpu"), share, processes)
    images = torch.randint(256, (BATCH, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return views(images[share], None, torch.Generator().manual_seed(2))


def test_every_method_is_tested() -> None:
    assert {name.partition(",")[0] for name in PHASES} == set(names())


# --- equal to dense training where nothing is removed -------------------------------------------------------


def whole_view(group: Group, ids_keep: Tensor | None) -> View:
    x_t, target = torch.randn(4, 16, 4), torch.randn(4, 16, 4)
    t = torch.randint(100, (4,))
    return View(group, x_t, t, target, ids_keep, None, chance=torch.ones(4), positions=True)


@pytest.mark.parametrize("name", MASKED)
def test_with_all_tokens_kept_it_is_dense_training(name: str, network: Transformer) -> None:
    order = torch.rand(4, 16).argsort(dim=1)
    method = method_of(phase(name))
    view = whole_view(Group(4), order)
    # What is visible is chosen before the view is made: dropping gathers there.
    seen = replace(view, x_t=method.visible(view.x_t, order), target=method.visible(view.target, order))
    [dense] = Trainee(network, DROP)([replace(view, ids_keep=None)])
    [own] = Trainee(network, method)([seen])
    torch.testing.assert_close(own.denoising, dense.denoising)
    assert own.auxiliary is None or not own.auxiliary.any()


@pytest.mark.parametrize("name", ["mixed_crops", "coarse, patch, noisy", "sized_to_noise"])
def test_whole_images_in_a_batch_are_trained_densely(name: str, network: Transformer) -> None:
    view = whole_view(Group(4), None)
    [dense] = Trainee(network, DROP)([view])
    [own] = Trainee(network, method_of(phase(name)))([view])
    assert torch.equal(own.denoising, dense.denoising)


# --- cost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PHASES)
def test_a_step_costs_what_the_plan_says(name: str, network: Transformer, recipe: Recipe) -> None:
    plan = plans(name, recipe, network=network)[0]
    trainee = Trainee(network, plan.method)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        losses = trainee([one.view for one in drawn(plan, network)])
        torch.cat([own.total for own in losses]).sum().backward()
    assert counter.get_total_flops() == pytest.approx(BATCH * plan.flops_per_image, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [  # shares of a dense forward pass, computed by hand for this network
        ({"mask": {"strategy": "crop", "crop": 5}}, 0.377),
        ({"mask": HALF, "method": {"name": "route", "first": 1, "last": 1}}, 0.694),
        ({"mask": QUARTER, "method": {"name": "sparse_dense", "first": 1, "last": 1}}, 0.552),
        ({"mask": HALF, "method": {"name": "encode_decode", "decoder": 1}}, 0.597),
        ({"mask": QUARTER, "method": {"name": "defer", "mixer": 1}}, 0.387),
        ({"method": {"name": "coarse", "kind": "resolution", "factor": 2}}, 0.243),
        ({"method": {"name": "coarse", "kind": "patch", "factor": 2, "above": 0.5}}, 0.623),
    ],
)
def test_the_default_network_costs_less_by_as_much_as_the_blocks_see_less(
    settings: dict[str, Any], expected: float
) -> None:
    network = UViT(image_size=(32, 32), patch_size=4, in_channels=1, embed_dim=96, depth=5, num_heads=3)
    own = Phase.model_validate({**settings, "batch_size": 100, "share": 0.5})
    trainee = Trainee(network, method_of(own))
    groups = trainee.method.groups(100, own.mask)
    found = sum(group.images * group_flops(trainee, group) for group in groups) / 100
    assert found / group_flops(Trainee(network, DROP), Group(1)) == pytest.approx(expected, abs=0.006)


# --- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PHASES)
def test_gradients_reach_what_takes_part_and_nothing_else(name: str, network: Transformer, recipe: Recipe) -> None:
    plan = plans(name, recipe, network=network)[0]
    trainee = Trainee(network, plan.method)
    losses = trainee([one.view for one in drawn(plan, network)])
    torch.cat([own.total for own in losses]).sum().backward()
    unused = {id(weight) for weight in plan.method.unused(network)}
    for weight_name, weight in trainee.named_parameters():
        reached = weight.grad is not None and bool(weight.grad.any())
        assert reached != (id(weight) in unused), weight_name


@pytest.mark.parametrize("name", ["drop", "encode_decode"])
def test_a_removed_token_cannot_change_the_prediction_of_a_kept_one(name: str, network: Transformer) -> None:
    method = method_of(phase(name))
    trainee = Trainee(network, method)
    ids_keep = torch.rand(4, 16).argsort(dim=1)[:, :8]
    view = whole_view(Group(4, phase(name).mask), ids_keep)
    removed = torch.ones(4, 16, dtype=torch.bool).scatter(1, ids_keep, False)[..., None]
    found = []
    for x_t in (view.x_t, torch.where(removed, 9.0, view.x_t)):
        seen = replace(view, x_t=method.visible(x_t, ids_keep), target=method.visible(view.target, ids_keep))
        found.append(trainee([seen])[0].denoising)
    assert torch.equal(*found)


# --- the device ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UViT, DiT])
@pytest.mark.parametrize("name", PHASES)
def test_it_computes_where_the_network_is(name: str, kind: type[Transformer], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that is pretended: it computes no numbers, but refuses to mix tensors of two devices."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda weight, **_: weight)  # it would look at numbers
    own = phase(name)
    method = method_of(own)
    with FakeTensorMode():
        with torch.device("cuda"):
            network = kind(**SIZES)
        trainee = Trainee(network, method)
        assert {weight.device.type for weight in trainee.parameters()} == {"cuda"}
        for group in method.groups(BATCH, own.mask):
            with torch.device("cuda"):
                kept = group.mask.num_keep((4, 4)) if group.mask else None
                ids_keep = None if kept is None else torch.zeros(4, kept, dtype=torch.long)
                view = whole_view(group, ids_keep)
            seen = replace(view, x_t=method.visible(view.x_t, ids_keep), target=method.visible(view.target, ids_keep))
            assert trainee([seen])[0].total.device.type == "cuda"


# --- the bookkeeping of tokens, with loops ------------------------------------------------------------------


def test_a_detour_with_loops() -> None:
    extra, tokens = 1, 5
    stream = Stream(torch.randn(2, extra + tokens, 3), extra, skips=(torch.randn(2, extra + tokens, 3),))
    ids_keep, fill = torch.tensor([[3, 0], [1, 4]]), torch.randn(tokens, 3)
    inner = stream.select(ids_keep)
    passed = replace(inner, x=inner.x + 1, skips=(*inner.skips, inner.x + 2))  # a block that leaves its tokens
    back = stream.rejoin(passed, ids_keep, fill)
    for image in range(2):
        for place in range(tokens):
            kept = place in ids_keep[image].tolist()
            expected = stream.tokens[image, place] if kept else fill[place]
            assert torch.equal(back.tokens[image, place], expected + 1 if kept else expected)
            assert torch.equal(back.skips[1][image, extra + place], expected + 2 if kept else expected)
        assert torch.equal(back.x[image, 0], stream.x[image, 0] + 1)
    assert torch.equal(back.skips[0], stream.skips[0])


def test_averaging_with_loops(network: Transformer) -> None:
    images = torch.randn(3, 1, 8, 8)
    view = replace(whole_view(Group(3, factor=2), None), x_t=patchify(images, 2), target=patchify(images, 2))
    found = averaged(view, network)
    for image in range(3):
        for token in range(4):
            for pixel in range(4):
                row, column = 2 * (token // 2) + pixel // 2, 2 * (token % 2) + pixel % 2
                expected = sum(images[image, 0, 2 * row + i, 2 * column + j] for i in (0, 1) for j in (0, 1)) / 4
                assert found.x_t[image, token, pixel] == pytest.approx(float(expected), abs=1e-6)
    assert torch.equal(found.x_t, found.target)


def test_larger_patches_begin_as_the_networks_own_for_equal_tokens_and_fold_back(network: Transformer) -> None:
    method = method_of(phase("coarse, patch"))
    trainee = Trainee(network, method)
    token = torch.randn(4, 1, 4)
    embedded = nn.functional.linear(
        token.repeat(1, 1, 4), trainee.weights["embed_weight"], trainee.weights["embed_bias"]
    )
    torch.testing.assert_close(embedded, network.patch_embed(token))
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    method.carry_over(network, trainee.weights)
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight, before[name])


# --- groups of a batch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PHASES)
def test_groups_cover_the_batch_and_their_weights_add_up(name: str) -> None:
    for size in (4, 12, 33):
        groups = method_of(phase(name)).groups(size, phase(name).mask)
        assert sum(group.images for group in groups) == size
        assert sum(group.weight for group in groups) == pytest.approx(1)


def test_images_are_allotted_as_nearly_as_whole_numbers_can() -> None:
    assert allot([0.5, 0.3, 0.2], 10) == [5, 3, 2]
    assert allot([0.9, 0.05, 0.05], 4) == [2, 1, 1]
    assert sum(allot([0.21, 0.39, 0.4], 33)) == 33
    with pytest.raises(ValueError, match="batch_size=2; allowed: at least 3"):
        allot([1, 1, 1], 2)


def test_time_steps_belong_to_the_level_of_their_group(network: Transformer, recipe: Recipe) -> None:
    plan = plans("sized_to_noise", recipe, network=network)[0]
    levels = [0, 20, 60, 100]
    for one, low, high in zip(drawn(plan, network), levels, levels[1:], strict=False):
        assert ((low <= one.view.t) & (one.view.t < high)).all()


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", PHASES)
def test_processes_together_take_the_step_of_one(
    name: str, processes: int, network: Transformer, recipe: Recipe
) -> None:
    plan = plans(name, recipe, network=network)[0]

    def gradients(share: slice, count: int) -> Iterator[Tensor]:
        trainee = Trainee(copy.deepcopy(network), plan.method)
        views = drawn(plan, network, share, count)
        losses = trainee([one.view for one in views])
        torch.stack([one.minimised(own) for one, own in zip(views, losses, strict=True)]).sum().backward()
        return (torch.zeros(()) if weight.grad is None else weight.grad for weight in trainee.parameters())

    size = BATCH // processes
    shares = [gradients(slice(size * i, size * (i + 1)), processes) for i in range(processes)]
    for whole, *parts in zip(gradients(slice(0, BATCH), 1), *shares, strict=True):
        torch.testing.assert_close(sum(parts) / processes, whole, rtol=1e-4, atol=1e-6)


def test_a_process_without_an_image_of_a_group_is_refused() -> None:
    with pytest.raises(MaskDMError, match="batch_size=8: a process would have no image of a group of 1"):
        own_parts((Group(7), Group(1)), slice(0, 3))


# --- training -----------------------------------------------------------------------------------------------


def trainer(plan: PhasePlan, folder: Path, data: PreparedData, network: Transformer, **settings: Any) -> PhaseTrainer:
    return PhaseTrainer(
        copy.deepcopy(network), OBJECTIVE, data, plan, lambda _: 0.5, 0, folder, lambda _: None, **settings
    )


def weights(one: PhaseTrainer) -> list[Tensor]:
    return [*one.trainee.state_dict().values(), *one.ema.state_dict().values()]


@pytest.mark.parametrize("name", PHASES)
def test_a_resumed_phase_ends_as_a_whole_one(
    name: str, network: Transformer, data: PreparedData, recipe: Recipe, tmp_path: Path
) -> None:
    plan = plans(name, recipe, network=network)[0]
    whole = trainer(plan, tmp_path / "whole", data, network)
    whole.run()
    half = trainer(replace(plan, steps=2, heldout_steps=(2,)), tmp_path / "half", data, network)
    half.run()
    resumed = trainer(plan, tmp_path / "half", data, network)
    resumed.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


@pytest.mark.parametrize("last", [None, "sparse_dense", "encode_decode"])
def test_the_next_phase_takes_over_the_network_and_what_its_own_method_has_added(
    last: str | None, network: Transformer, data: PreparedData, recipe: Recipe, tmp_path: Path
) -> None:
    first_plan, second_plan = plans("sparse_dense", recipe, last, network=network)
    first = trainer(first_plan, tmp_path, data, network)
    result = first.run()
    second = trainer(second_plan, tmp_path, data, network, before=result.state)
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
    moments = [dict(each.state) for each in second.optimizers]
    known = {id(weight) for own in moments for weight in own}
    assert all(id(weight) in known for weight in second.network.parameters())
    if last is not None:
        token = second.trainee.weights["mask_token"]
        assert bool(token.any()) == (last == "sparse_dense")
        assert (id(token) in known) == (last == "sparse_dense")
    second.run()


def test_a_method_with_other_settings_begins_with_weights_of_its_own(
    network: Transformer, data: PreparedData, recipe: Recipe, tmp_path: Path
) -> None:
    patches, resolution = plans("coarse, patch", recipe, "coarse", network=network)
    result = trainer(patches, tmp_path, data, network).run()
    second = trainer(resolution, tmp_path, data, network, before=result.state)
    assert not second.trainee.weights
    for name, weight in second.network.named_parameters():
        assert torch.equal(weight, result.state["trainee"][f"network.{name}"])


def test_larger_patches_are_folded_into_what_is_handed_over(
    network: Transformer, data: PreparedData, recipe: Recipe, tmp_path: Path
) -> None:
    plan, dense = plans("coarse, patch", recipe, network=network)
    before = network.patch_embed.weight.detach().clone()
    one = trainer(plan, tmp_path, data, network)
    result = one.run()
    folded = one.ema.weights["embed_weight"].unflatten(1, (4, 4)).sum(dim=1)
    torch.testing.assert_close(result.network.patch_embed.weight, folded)
    assert not torch.equal(result.network.patch_embed.weight, before)
    next_one = trainer(dense, tmp_path, data, network, before=result.state)
    folded = one.trainee.weights["embed_weight"].unflatten(1, (4, 4)).sum(dim=1)
    torch.testing.assert_close(next_one.network.patch_embed.weight, folded)


# --- a network that has no blocks to tell apart -------------------------------------------------------------

UNET = {"name": "unet", "patch_size": 2, "block_out_channels": [4, 8], "layers_per_block": 1, "attention_levels": []}


@pytest.mark.parametrize("name", ["mixed_crops", "coarse", "sized_to_noise"])
def test_methods_that_show_all_blocks_the_same_run_on_a_convolutional_network(name: str, recipe: Recipe) -> None:
    model = UNET | {"class_conditional": False}
    settings = PARAMS | {"model": model, "arms": {"arm": [phase(name), Phase(batch_size=8)]}, "baseline": "arm"}
    params = Params.model_validate(settings | {"budget": {"train_flops": 3e10, "snapshots": [1.0]}})
    plan = arm_plans(params, recipe, "arm")[0]
    network = build_network(params.model, params.data, None)
    trainee = Trainee(network, plan.method)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        losses = trainee([one.view for one in drawn(plan, network)])
        torch.cat([own.total for own in losses]).sum().backward()
    assert counter.get_total_flops() == pytest.approx(BATCH * plan.flops_per_image, rel=1e-9)
    assert plan.flops_per_image < arm_plans(params, recipe, "arm")[1].flops_per_image
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("name", ["defer", "encode_decode", "route", "sparse_dense", "coarse, patch"])
def test_methods_that_tell_blocks_apart_are_refused_there(name: str) -> None:
    model = UNET | {"class_conditional": False}
    settings = PARAMS | {"model": model, "arms": {"arm": [phase(name), Phase(batch_size=8)]}, "baseline": "arm"}
    message = rf"arms\.arm\[0\]\.method\.name={name.split(',')[0]} with model\.name=unet; allowed: a method that shows"
    with pytest.raises(MaskDMError, match=message):
        validated(Params, settings, "params.yaml")


# --- bad input ----------------------------------------------------------------------------------------------


ROUTE = {"name": "route", "first": 1, "last": 1}
CROPS = [{"crop": 2, "share": 0.5}, {"crop": 3, "share": 0.5}]
BOTH = [{"until": 1.0, "crop": 2, "factor": 2}]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": ROUTE | {"name": "rout"}, "mask": HALF}, r"method: name=rout; allowed: coarse, .*route, .* settings"),
    ({"method": "route", "mask": HALF}, r"name=route; allowed: .*with the settings of that method"),
    ({"method": {"name": "route", "first": 1}, "mask": HALF}, r"method\.last is missing"),
    ({"method": ROUTE | {"first": 0}, "mask": HALF}, r"method\.first=0: input should be greater"),
    ({"method": ROUTE | {"middle": 2}, "mask": HALF}, r"method\.middle is not a known"),
    ({"method": ROUTE}, r"mask is missing; method\.name=route reads it"),
    ({"method": PHASES["coarse"]["method"], "mask": HALF}, r"mask with method\.name=coarse; allowed: none"),
    (
        {"method": ROUTE | {"first": 4}, "mask": HALF},
        r"arm\[0\]\.method: 5 blocks would see all tokens; allowed: 1 to 4",
    ),
    ({"method": PHASES["coarse"]["method"] | {"factor": 3}}, r"method\.factor=3 does not divide the 4x4"),
    ({"method": {"name": "mixed_crops", "crops": CROPS}}, r"shares add up to 1; allowed: less than 1"),
    ({"method": {"name": "mixed_crops", "crops": [{"crop": 4, "share": 0.5}]}}, r"mask\.crop=4 keeps everything"),
    (
        {"method": {"name": "sized_to_noise", "levels": [{"until": 0.5}]}},
        r"until=\[0\.5\]; allowed: ascending, the last 1",
    ),
    ({"method": {"name": "sized_to_noise", "levels": BOTH}}, r"factor=2 with crop=2; allowed: one of both"),
    ({"method": PHASES["mixed_crops"]["method"], "batch_size": 2}, r"arm\[0\]\.batch_size=2; allowed: at least 3, one"),
    ({"method": ROUTE, "mask": HALF, "positions": False}, r"positions=false with method\.name=route"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_method_that_cannot_be_is_one_line(changes: dict[str, Any], message: str) -> None:
    own = {"share": 0.4, "batch_size": 8, **changes}
    settings = PARAMS | {"model": PARAMS["model"] | {"depth": 5}, "arms": {"arm": [own, {"batch_size": 8}]}}
    with pytest.raises(MaskDMError, match=message) as error:
        validated(Params, settings | {"baseline": "arm"}, "params.yaml")
    assert "\n" not in str(error.value)


def test_settings_survive_being_written_and_read() -> None:
    for name in PHASES:
        written = TypeAdapter(Phase).dump_python(phase(name), mode="json")
        assert Phase.model_validate(written) == phase(name)
    assert isinstance(phase("coarse").method, Coarse)
