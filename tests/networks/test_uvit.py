from pathlib import Path

import pytest
import torch

from maskdm.networks.uvit import UViT, sinusoidal_embedding
from maskdm.training.checkpoint import load_snapshot, save_snapshot

SIZES = {"patch_size": 2, "in_channels": 1, "embed_dim": 16, "depth": 3, "num_heads": 2}


def inputs(network: UViT, batch_size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch_size, network.num_tokens, network.token_dim), torch.randint(1000, (batch_size,))


@pytest.mark.parametrize(("embed_dim", "num_heads", "millions"), [(512, 8, 44), (768, 12, 99)], ids=["small", "base"])
def test_the_papers_networks_have_their_parameter_counts(embed_dim: int, num_heads: int, millions: int) -> None:
    with torch.device("meta"):
        network = UViT(
            image_size=(64, 64), patch_size=4, in_channels=3, embed_dim=embed_dim, depth=13, num_heads=num_heads
        )
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


@pytest.mark.parametrize(("image_size", "patch_size", "channels"), [((8, 8), 2, 1), ((4, 12), 4, 3), ((1, 2), 1, 1)])
def test_any_image_size_patch_size_and_channel_count(
    image_size: tuple[int, int], patch_size: int, channels: int
) -> None:
    network = UViT(
        image_size=image_size, patch_size=patch_size, in_channels=channels, embed_dim=8, depth=1, num_heads=2
    )
    x_t, t = inputs(network)
    assert network(x_t, t).shape == x_t.shape


def test_keeping_all_tokens_equals_the_dense_network(network: UViT) -> None:
    x_t, t = inputs(network)
    everything = torch.arange(network.num_tokens).expand(len(x_t), -1)
    torch.testing.assert_close(network(x_t, t, everything), network(x_t, t))


def test_the_order_of_kept_tokens_does_not_matter(network: UViT) -> None:
    x_t, t = inputs(network)
    order = torch.randperm(network.num_tokens)
    ids_keep = order.expand(len(x_t), -1)
    torch.testing.assert_close(network(x_t[:, order], t, ids_keep), network(x_t, t)[:, order])


def test_position_embeddings_follow_the_kept_tokens(network: UViT) -> None:
    x_t, t = inputs(network)
    first, last = torch.arange(4).expand(3, -1), torch.arange(12, 16).expand(3, -1)
    assert not torch.allclose(network(x_t[:, :4], t, first), network(x_t[:, :4], t, last))


def test_without_positions_the_prediction_does_not_depend_on_the_places(network: UViT) -> None:
    x_t, t = inputs(network)
    first, last = torch.arange(4).expand(3, -1), torch.arange(12, 16).expand(3, -1)
    untold = [network(x_t[:, :4], t, ids_keep, positions=False) for ids_keep in (first, last)]
    assert torch.equal(*untold)
    assert not torch.allclose(untold[0], network(x_t[:, :4], t, first))


def test_the_gradient_reaches_only_kept_positions(network: UViT) -> None:
    x_t, t = inputs(network)
    ids_keep = torch.tensor([[1, 3, 5]]).expand(3, -1)
    network(x_t[:, :3], t, ids_keep).square().sum().backward()
    assert network.pos_embed.grad is not None
    assert network.pos_embed.grad.abs().sum(1).nonzero().ravel().tolist() == [1, 3, 5]


def test_every_parameter_takes_part_in_both_phases(network: UViT) -> None:
    x_t, t = inputs(network)
    for ids_keep in (None, torch.arange(network.num_tokens).expand(3, -1)):
        network.zero_grad()
        network(x_t, t, ids_keep).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_class_labels_change_the_prediction_and_are_required() -> None:
    network = UViT(image_size=(8, 8), **SIZES, num_classes=5)
    x_t, t = inputs(network)
    zeros = torch.zeros(3, dtype=torch.long)
    assert network.num_extra_tokens == 2
    assert not torch.allclose(network(x_t, t, labels=zeros), network(x_t, t, labels=zeros + 1))
    with pytest.raises(ValueError, match="labels are required"):
        network(x_t, t)


def test_it_equals_a_plain_reference_written_with_loops(network: UViT) -> None:
    """The published architecture once more, one image, one token and one head at a time."""
    x_t, t = inputs(network, batch_size=1)
    weights = {name: value.double() for name, value in network.state_dict().items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        bias = weights.get(f"{name}.bias", torch.zeros(1, dtype=torch.double))
        return torch.stack([weights[f"{name}.weight"] @ token + bias for token in x])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(name: str, x: torch.Tensor) -> torch.Tensor:
        q, k, v = linear(f"{name}.qkv", x).chunk(3, dim=1)
        heads = []
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            rows = [torch.softmax(k[:, part] @ query / 8**0.5, dim=0) @ v[:, part] for query in q[:, part]]
            heads.append(torch.stack(rows))
        return linear(f"{name}.proj", torch.cat(heads, dim=1))

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        x = x + attention(f"{name}.attn", norm(f"{name}.norm1", x))
        hidden = linear(f"{name}.mlp.0", norm(f"{name}.norm2", x))
        gelu = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        return x + linear(f"{name}.mlp.2", gelu)

    tokens = linear("patch_embed", x_t[0].double()) + weights["pos_embed"]
    time = sinusoidal_embedding(t, 16).double() + weights["extra_pos_embed"]
    down = block("in_blocks.0", torch.cat([time, tokens]))
    middle = block("mid_block", down)
    up = block("out_blocks.0", linear("out_blocks.0.skip_linear", torch.cat([middle, down], dim=1)))
    expected = linear("head", norm("norm", up[1:]))
    torch.testing.assert_close(network(x_t, t)[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_the_time_embedding_has_cosines_then_sines() -> None:
    embedding = sinusoidal_embedding(torch.tensor([0, 3]), 4)
    assert embedding[0].tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(
        embedding[1],
        torch.tensor([3.0, 0.03, 3.0, 0.03])
        .mul(1)
        .cos()
        .where(torch.tensor([True, True, False, False]), torch.tensor([3.0, 0.03, 3.0, 0.03]).sin()),
    )


def test_saved_weights_come_back_with_their_config(tmp_path: Path) -> None:
    network = UViT(image_size=(4, 8), **SIZES, num_classes=5)
    save_snapshot(tmp_path / "weights", network)
    assert {p.suffix for p in (tmp_path / "weights").iterdir()} == {".json", ".safetensors"}
    again = load_snapshot(tmp_path / "weights", torch.device("cpu"))
    assert (again.grid, again.num_classes) == ((2, 4), 5)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize("changes", [{"depth": 2}, {"embed_dim": 10}, {"patch_size": 3}])
def test_an_impossible_network_is_rejected(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        UViT(image_size=(8, 8), **{**SIZES, **changes})
