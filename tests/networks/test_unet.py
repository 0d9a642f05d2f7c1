import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maskdm.config.masks import BlockMask, CropMask
from maskdm.config.method import Group
from maskdm.config.recipe import Optimisation
from maskdm.methods.drop import DROP
from maskdm.methods.masks import draw_ids_keep
from maskdm.methods.method import Trainee
from maskdm.networks.patches import gather_tokens, patchify, unpatchify
from maskdm.networks.unet import UNet
from maskdm.runtime.errors import MaskDMError
from maskdm.training.checkpoint import load_snapshot, save_snapshot
from maskdm.training.optimizers import make_optimizers, parameter_groups
from maskdm.training.plan import group_flops
from tests.conftest import RECIPE


def flops_of_an_image(network: UNet, side: int) -> float:
    """Of a crop, or of the whole image."""
    whole = side**2 == network.num_tokens
    return group_flops(Trainee(network, DROP), Group(1, None if whole else CropMask(strategy="crop", crop=side)))


def new_network(**changes: Any) -> UNet:
    """8x8 tokens of 2x2 pixels, two levels, attention at the second."""
    sizes: dict[str, Any] = {"image_size": (16, 16), "patch_size": 2, "in_channels": 3}
    levels = {"block_out_channels": (8, 16), "layers_per_block": 1, "attention_levels": (1,)}
    return UNet(**sizes | levels | changes)


def crop(network: UNet, side: int, batch_size: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of random crops of `side` tokens, 8 of which are everything; their time steps and their places."""
    ids_keep = torch.arange(64).expand(batch_size, -1)
    if side < 8:
        mask = CropMask(strategy="crop", crop=side)
        ids_keep = draw_ids_keep(mask, network.grid, batch_size, torch.Generator().manual_seed(0))
    return torch.randn(batch_size, side**2, network.token_dim), torch.randint(1000, (batch_size,)), ids_keep


def test_the_network_of_ddpm_has_its_parameter_count() -> None:
    """35.7 M on CIFAR-10 (Ho et al. 2020, Appendix B); the coordinates are 2 of 5 channels here."""
    with torch.device("meta"):
        network = new_network(
            image_size=(32, 32), block_out_channels=(128, 256, 256, 256), layers_per_block=2, attention_levels=(1,)
        )
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(35.7, abs=0.06)


def test_keeping_all_tokens_equals_the_dense_network() -> None:
    network = new_network()
    x_t, t = torch.randn(3, 64, 12), torch.randint(1000, (3,))
    torch.testing.assert_close(network(x_t, t, torch.arange(64).expand(3, -1)), network(x_t, t))


def test_a_crop_is_seen_as_an_image_with_its_coordinates() -> None:
    """Cut out of the image and of the whole grid of coordinates by hand, and given to diffusers' network."""
    network = new_network()
    x_t, t, ids_keep = crop(network, side=4)
    axis = torch.linspace(-1, 1, 16)
    whole = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    for image, time, ids, found in zip(x_t, t, ids_keep, network(x_t, t, ids_keep), strict=True):
        top, left = 2 * int(ids[0] // 8), 2 * int(ids[0] % 8)
        where = whole[:, top : top + 8, left : left + 8]
        pixels = unpatchify(image[None], 2, (4, 4))[0]
        expected = network.unet(torch.cat([pixels, where])[None], time[None]).sample
        torch.testing.assert_close(unpatchify(found[None], 2, (4, 4)), expected, rtol=1e-4, atol=1e-5)


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), patch=st.integers(1, 3))
def test_the_corners_of_the_image_are_at_minus_1_and_1(rows: int, columns: int, patch: int) -> None:
    size = (2 * rows * patch, 2 * columns * patch)
    network = new_network(image_size=size, patch_size=patch, block_out_channels=(4, 4), attention_levels=())
    found = network._coordinates(torch.zeros(1, 3, *size), None)[0]
    assert found[:, 0, 0].tolist() == [-1, -1]
    assert found[:, -1, -1].tolist() == [1, 1]
    everywhere = patchify(found[None], patch)
    for token in range(network.num_tokens):
        one = network._coordinates(torch.zeros(1, 3, patch, patch), torch.tensor([[token]]))
        torch.testing.assert_close(patchify(one, patch)[:, 0], everywhere[:, token])


def test_without_positions_the_prediction_does_not_depend_on_the_places() -> None:
    network = new_network()
    x_t, t, ids_keep = crop(network, side=4, batch_size=1)
    first = ids_keep - ids_keep[:, :1]
    last = first + 36
    untold = [network(x_t, t, ids, positions=False) for ids in (first, last)]
    told = [network(x_t, t, ids) for ids in (first, last)]
    assert torch.equal(*untold)
    assert not torch.allclose(*told)
    assert network.position_weights() == []


def test_scattered_tokens_are_refused() -> None:
    network = new_network()
    x_t, t, ids_keep = crop(network, side=4)
    blocks = BlockMask(strategy="block", ratio=0.75, block=2)
    scattered = draw_ids_keep(blocks, network.grid, 3, torch.Generator().manual_seed(0))
    around = ids_keep - ids_keep[:, :1] + 6  # its right half would stand at the left edge
    for ids in (scattered, ids_keep.flip(1), around):
        with pytest.raises(ValueError, match="allowed: one square crop, row by row"):
            network(x_t, t, ids)
    with pytest.raises(ValueError, match="8 tokens; allowed: a square"):
        network(x_t[:, :8], t, ids_keep[:, :8])


def test_a_crop_that_cannot_be_halved_is_refused() -> None:
    network = new_network(block_out_channels=(8, 8, 8), attention_levels=())
    x_t, t, ids_keep = crop(network, side=3)
    with pytest.raises(ValueError, match=r"9 tokens; allowed: .* a multiple of 4 pixels"):
        network(x_t, t, ids_keep)


@pytest.mark.parametrize("side", [4, 8])
def test_every_parameter_takes_part_in_both_phases(side: int) -> None:
    network = new_network(num_classes=3)
    x_t, t, ids_keep = crop(network, side)
    network(x_t, t, ids_keep, torch.tensor([0, 1, 2])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_class_labels_change_the_prediction_and_are_required() -> None:
    network = new_network(num_classes=5)
    x_t, t, ids_keep = crop(network, side=4)
    zeros = torch.zeros(3, dtype=torch.long)
    assert not torch.allclose(network(x_t, t, ids_keep, zeros), network(x_t, t, ids_keep, zeros + 1))
    for labelled, labels in ((network, None), (new_network(), zeros)):
        with pytest.raises(ValueError, match="labels are required"):
            labelled(x_t, t, ids_keep, labels)


@pytest.mark.parametrize("side", [2, 4, 8])
def test_the_count_of_flops_equals_the_counter_on_a_real_step(side: int) -> None:
    network = new_network(num_classes=3)
    x_t, t, ids_keep = crop(network, side, batch_size=5)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(x_t, t, ids_keep, torch.zeros(5, dtype=torch.long)).sum().backward()
    assert counter.get_total_flops() == 5 * flops_of_an_image(network, side)


def test_the_flops_of_convolutions_are_those_written_out() -> None:
    """Of one level without attention: products of 3x3 kernels, and those of the time embedding."""
    network = new_network(block_out_channels=(8,), attention_levels=())
    down, up = 2 * 9 * 8 * 8, 9 * 16 * 8 + 9 * 8 * 8 + 16 * 8  # of a residual block
    kernels = 9 * 5 * 8 + 3 * down + 2 * up + 9 * 8 * 3  # one block down, two in the middle, two up
    time = 8 * 32 + 32 * 32 + 5 * 32 * 8
    for tokens in (16, 64):
        pixels = 4 * tokens
        # Backward costs twice the forward, but nothing needs the gradient with respect to image and time.
        not_needed = pixels * 9 * 8 * 5 + 8 * 32
        expected = 2 * (3 * (pixels * kernels + time) - not_needed)
        assert flops_of_an_image(network, math.isqrt(tokens)) == expected


def test_pixels_of_a_lower_resolution_stand_where_those_they_cover_do() -> None:
    network = new_network()
    whole = network._coordinates(torch.zeros(2, 3, 16, 16), None)
    half = network._coordinates(torch.zeros(2, 3, 8, 8), None)
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(whole, 2))


def test_weights_of_convolutions_decay_as_those_of_linear_layers_do() -> None:
    network = new_network(num_classes=3)
    decayed, others = parameter_groups(network, 0.03, without=[])
    names = {id(p): name for name, p in network.named_parameters()}
    held = [{names[id(p)] for p in group["params"]} for group in (decayed, others)]  # type: ignore[attr-defined]
    assert {"unet.conv_in.weight", "unet.time_embedding.linear_1.weight"} < held[0]
    assert all(name.endswith("weight") and "norm" not in name for name in held[0])
    assert {"unet.class_embedding.weight", "unet.conv_norm_out.weight", "unet.conv_out.bias"} < held[1]
    assert held[0] | held[1] == {*names.values()}


def test_muon_takes_the_matrices_of_the_attention() -> None:
    settings = Optimisation.model_validate(RECIPE["optimisation"] | {"optimizer": "muon"})
    network = new_network()
    _, muon = make_optimizers(network, settings)
    names = {id(p): name for name, p in network.named_parameters()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    # Attention: one in the way down, two in the way up, one in the middle; four matrices each.
    assert len(taken) == 4 * 4
    assert all("attentions" in name and name.endswith("weight") for name in taken)
    with pytest.raises(MaskDMError, match="optimizer=muon, but the network has no matrices for it; allowed: adamw"):
        make_optimizers(new_network(attention_levels=()), settings)


def test_saved_weights_come_back_with_their_config(tmp_path: Path) -> None:
    network = new_network(num_classes=5)
    save_snapshot(tmp_path / "weights", network, None)
    again = load_snapshot(tmp_path / "weights", torch.device("cpu"))
    assert isinstance(again, UNet)
    x_t, t, ids_keep = crop(network, side=4)
    labels = torch.tensor([0, 4, 1])
    assert torch.equal(again(x_t, t, ids_keep, labels), network(x_t, t, ids_keep, labels))
    kept = gather_tokens(torch.zeros(3, 64, 12), ids_keep)
    assert again(kept, t, ids_keep, labels).shape == kept.shape


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_size": (10, 16), "block_out_channels": (8, 8, 8)}, "image_size=.*multiples of 4"),
        ({"patch_size": 3}, "patch_size=3 does not divide"),
        ({"block_out_channels": (8, 6)}, "block_out_channels=.*multiples of 4"),
        ({"attention_levels": (2,)}, r"attention_levels=\[2\]; allowed: \[0, 1\]"),
    ],
)
def test_an_impossible_network_is_rejected(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        new_network(**changes)
