"""What holds for every transformer: it works on any set of tokens, and can be taken apart."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskdm.networks.dit import DiT
from maskdm.networks.layers import sinusoidal_embedding
from maskdm.networks.network import Transformer
from maskdm.networks.uvit import UViT
from maskdm.training.checkpoint import load_snapshot, save_snapshot

Make = Callable[..., Transformer]


@pytest.fixture(params=[UViT, DiT], ids=["uvit", "dit"])
def make(request: pytest.FixtureRequest) -> Make:
    """Networks of 16 tokens of 2x2 pixels, unless told otherwise, in which no weight is 0."""

    def make_network(**changes: object) -> Transformer:
        sizes = {"image_size": (8, 8), "patch_size": 2, "in_channels": 1, "embed_dim": 16, "depth": 3, "num_heads": 2}
        network = request.param(**sizes | changes)
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(0.02 * torch.randn_like(weight))  # a DiT begins with gates and a head of 0
        return network

    return make_network


@pytest.fixture
def network(make: Make) -> Transformer:
    return make()


def inputs(network: Transformer, batch_size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch_size, network.num_tokens, network.token_dim), torch.randint(1000, (batch_size,))


@pytest.mark.parametrize(("image_size", "patch_size", "channels"), [((8, 8), 2, 1), ((4, 12), 4, 3), ((1, 2), 1, 1)])
def test_any_image_size_patch_size_and_channel_count(
    make: Make, image_size: tuple[int, int], patch_size: int, channels: int
) -> None:
    network = make(image_size=image_size, patch_size=patch_size, in_channels=channels, embed_dim=8, depth=1)
    x_t, t = inputs(network)
    assert network(x_t, t).shape == x_t.shape


def test_keeping_all_tokens_equals_the_dense_network(network: Transformer) -> None:
    x_t, t = inputs(network)
    everything = torch.arange(network.num_tokens).expand(len(x_t), -1)
    torch.testing.assert_close(network(x_t, t, everything), network(x_t, t))


def test_the_order_of_kept_tokens_does_not_matter(network: Transformer) -> None:
    x_t, t = inputs(network)
    order = torch.randperm(network.num_tokens)
    ids_keep = order.expand(len(x_t), -1)
    torch.testing.assert_close(network(x_t[:, order], t, ids_keep), network(x_t, t)[:, order])


def test_position_embeddings_follow_the_kept_tokens(network: Transformer) -> None:
    x_t, t = inputs(network)
    first, last = torch.arange(4).expand(3, -1), torch.arange(12, 16).expand(3, -1)
    assert not torch.allclose(network(x_t[:, :4], t, first), network(x_t[:, :4], t, last))


def test_without_positions_the_prediction_does_not_depend_on_the_places(network: Transformer) -> None:
    x_t, t = inputs(network)
    first, last = torch.arange(4).expand(3, -1), torch.arange(12, 16).expand(3, -1)
    untold = [network(x_t[:, :4], t, ids_keep, positions=False) for ids_keep in (first, last)]
    assert torch.equal(*untold)
    assert not torch.allclose(untold[0], network(x_t[:, :4], t, first))


def test_the_gradient_reaches_only_kept_positions(network: Transformer) -> None:
    x_t, t = inputs(network)
    ids_keep = torch.tensor([[1, 3, 5]]).expand(3, -1)
    network(x_t[:, :3], t, ids_keep).square().sum().backward()
    (embeddings,) = network.position_weights()
    assert embeddings is network.places(None, network.num_tokens)
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum(1).nonzero().ravel().tolist() == [1, 3, 5]


def test_every_parameter_takes_part_in_both_phases(network: Transformer) -> None:
    x_t, t = inputs(network)
    for ids_keep in (None, torch.arange(network.num_tokens).expand(3, -1)):
        network.zero_grad()
        network(x_t, t, ids_keep).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_the_prediction_depends_on_the_time_step(network: Transformer) -> None:
    x_t, _ = inputs(network)
    early, late = (network(x_t, torch.full((3,), t)) for t in (10, 900))
    assert not torch.allclose(early, late)


def test_class_labels_change_the_prediction_and_are_required(make: Make) -> None:
    network = make(num_classes=5)
    x_t, t = inputs(network)
    zeros = torch.zeros(3, dtype=torch.long)
    assert not torch.allclose(network(x_t, t, labels=zeros), network(x_t, t, labels=zeros + 1))
    for labelled, labels in ((network, None), (make(), zeros)):
        with pytest.raises(ValueError, match="labels are required"):
            labelled(x_t, t, labels=labels)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_blocks_run_one_by_one_are_the_network(make: Make, depth: int) -> None:
    network = make(depth=depth, num_classes=5)
    x_t, t = inputs(network)
    labels, ids_keep = torch.tensor([0, 4, 2]), torch.arange(network.num_tokens).expand(3, -1)
    stream = network.embed(x_t, t, ids_keep, labels)
    for block in range(network.depth):
        stream = network.run(stream, block, block + 1)
        assert (len(stream.skips) > 0) == (network.has_long_skips and block < network.depth - 1 and depth > 1)
    assert stream.skips == ()
    torch.testing.assert_close(network.predict(stream), network(x_t, t, ids_keep, labels))


def test_a_stream_keeps_the_tokens_that_a_mask_kept(network: Transformer) -> None:
    x_t, t = inputs(network)
    ids_keep = torch.tensor([[1, 3, 5], [0, 2, 15], [7, 6, 4]])
    kept = network.embed(x_t.gather(1, ids_keep[..., None].expand(-1, -1, 4)), t, ids_keep)
    torch.testing.assert_close(network.embed(x_t, t).select(ids_keep).x, kept.x)


def test_muon_takes_matrices_alone_and_each_once(network: Transformer) -> None:
    found = network.matrices()
    assert all(weight.ndim == 2 for weight in found)
    assert len({id(weight) for weight in found}) == len(found) >= 4 * network.depth
    assert {id(weight) for weight in found} < {id(weight) for weight in network.parameters()}


def test_saved_weights_come_back_with_their_config(make: Make, tmp_path: Path) -> None:
    network = make(image_size=(4, 8), num_classes=5)
    save_snapshot(tmp_path / "weights", network, None)
    assert {p.suffix for p in (tmp_path / "weights").iterdir()} == {".json", ".safetensors", ""}  # and SHA256SUMS
    again = load_snapshot(tmp_path / "weights", torch.device("cpu"))
    assert type(again) is type(network)
    assert (again.grid, again.num_classes) == ((2, 4), 5)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize("changes", [{"embed_dim": 9}, {"patch_size": 3}])
def test_an_impossible_network_is_rejected(make: Make, changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        make(**changes)


def test_the_time_embedding_has_cosines_then_sines() -> None:
    embedding = sinusoidal_embedding(torch.tensor([0, 3]), 4)
    assert embedding[0].tolist() == [1, 1, 0, 0]
    angles = torch.tensor([3.0, 0.03])
    torch.testing.assert_close(embedding[1], torch.cat([angles.cos(), angles.sin()]))
