from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import Timesteps
from einops import rearrange
from torch import Tensor, nn

from maskdm.networks.dit import DiT
from maskdm.networks.patches import patchify

SIZES = {"image_size": (8, 8), "patch_size": 2, "in_channels": 3, "embed_dim": 16, "depth": 2, "num_heads": 2}


def awake(network: DiT) -> DiT:
    """With every weight drawn at random: at first gates and head are 0."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.2)
    return network


def test_at_the_beginning_blocks_change_nothing_and_the_prediction_is_0() -> None:
    network = DiT(**SIZES)
    x_t, t = torch.randn(3, 16, 12), torch.tensor([0, 5, 999])
    start = network.embed(x_t, t)
    assert torch.equal(network.run(start, 0, network.depth).x, start.x)
    assert torch.equal(network(x_t, t), torch.zeros_like(x_t))


@pytest.mark.parametrize(
    ("embed_dim", "depth", "num_heads", "millions"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1152, 28, 16, 675)],
    ids=["S/2", "B/2", "XL/2"],
)
def test_the_papers_networks_have_their_parameter_counts(
    embed_dim: int, depth: int, num_heads: int, millions: int
) -> None:
    """Their Table 1, of 32x32 latents with 4 channels; ours learns positions, and predicts no variance."""
    with torch.device("meta"):
        network = DiT(
            image_size=(32, 32), patch_size=2, in_channels=4, embed_dim=embed_dim, depth=depth, num_heads=num_heads,
            num_classes=1000,
        )  # fmt: skip
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_it_equals_the_dit_of_diffusers() -> None:
    """With its positions replaced by ours, and its time embedding's periods by those of the published code."""
    network = awake(DiT(**SIZES, num_classes=7))
    theirs = copied(network).eval()
    images, t, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 500, 999]), torch.tensor([0, 6, 2])
    expected = theirs(images, timestep=t, class_labels=labels).sample
    torch.testing.assert_close(
        network(patchify(images, 2), t, labels=labels), patchify(expected, 2), rtol=1e-5, atol=1e-5
    )


def copied(network: Any) -> DiTTransformer2DModel:
    """A network of diffusers with the weights of ours."""
    theirs = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=7, norm_eps=1e-6,
    )  # fmt: skip
    copy(theirs.pos_embed.proj, rearrange(network.patch_embed.weight, "d (p q c) -> d c p q", p=2, q=2),
         network.patch_embed.bias)  # fmt: skip
    theirs.pos_embed.pos_embed = network.pos_embed.detach()[None]
    for block, own in zip(theirs.transformer_blocks, network.blocks, strict=True):
        conditioning = block.norm1.emb
        conditioning.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        copy_layer(conditioning.timestep_embedder.linear_1, network.time_embed[0])
        copy_layer(conditioning.timestep_embedder.linear_2, network.time_embed[2])
        conditioning.class_embedder.embedding_table.weight.data[:7] = network.label_embed.weight.data[:7]
        copy_layer(block.norm1.linear, own.modulation)
        q, k, v = zip(own.attn.qkv.weight.chunk(3), own.attn.qkv.bias.chunk(3), strict=True)
        for layer, part in ((block.attn1.to_q, q), (block.attn1.to_k, k), (block.attn1.to_v, v)):
            copy(layer, *part)
        copy_layer(block.attn1.to_out[0], own.attn.proj)
        copy_layer(block.ff.net[0].proj, own.mlp[0])
        copy_layer(block.ff.net[2], own.mlp[2])
    copy_layer(theirs.proj_out_1, network.modulation)
    copy_layer(theirs.proj_out_2, network.head)
    return theirs


def copy_layer(target: nn.Module, source: nn.Linear) -> None:
    copy(target, source.weight, source.bias)


def copy(target: nn.Module, weight: Tensor, bias: Tensor) -> None:
    target.load_state_dict({"weight": weight, "bias": bias})
