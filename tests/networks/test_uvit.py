import pytest
import torch

from maskdm.networks.layers import sinusoidal_embedding
from maskdm.networks.uvit import UViT

SIZES = {"patch_size": 2, "in_channels": 1, "embed_dim": 16, "depth": 3, "num_heads": 2}


@pytest.mark.parametrize(("embed_dim", "num_heads", "millions"), [(512, 8, 44), (768, 12, 99)], ids=["small", "base"])
def test_the_papers_networks_have_their_parameter_counts(embed_dim: int, num_heads: int, millions: int) -> None:
    with torch.device("meta"):
        network = UViT(
            image_size=(64, 64), patch_size=4, in_channels=3, embed_dim=embed_dim, depth=13, num_heads=num_heads
        )
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def test_it_equals_a_plain_reference_written_with_loops(network: UViT) -> None:
    """The published architecture once more, one image, one token and one head at a time."""
    x_t, t = torch.randn(1, 16, 4), torch.randint(1000, (1,))
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


@pytest.mark.parametrize("changes", [{"depth": 2}, {"embed_dim": 10}, {"patch_size": 3}])
def test_an_impossible_network_is_rejected(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        UViT(image_size=(8, 8), **{**SIZES, **changes})
