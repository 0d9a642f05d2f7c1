"""The authors' network once more, in plain torch from the names and shapes of its weights, against the imported one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from maskdm.networks.authors import NUM_HEADS, import_uvit
from maskdm.networks.patches import gather_tokens, patchify

Weights = dict[str, Tensor]
DIM, HEADS, PATCH, SIDE = 16, 2, 2, 4


def their_weights(depth: int = 3, num_classes: int | None = None, dim: int = DIM) -> Weights:
    """Random weights under the authors' names: images of 3x8x8 pixels in 2x2 patches."""
    linear = {"attn.proj": (dim, dim), "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.patch_embed.proj.weight": (dim, 3, PATCH, PATCH),
        "encoder.patch_embed.proj.bias": (dim,),
        "encoder.encoder_pos_embed": (1, SIDE**2 + (1 if num_classes is None else 2), dim),
        "encoder.norm.weight": (dim,),
        "encoder.norm.bias": (dim,),
        "encoder_to_output.weight": (3 * PATCH**2, dim),
        "encoder_to_output.bias": (3 * PATCH**2,),
    }
    if num_classes is not None:
        shapes |= {"encoder.label_emb.weight": (num_classes, dim), "encoder.uncond_embed": (1, dim)}
    half = range(depth // 2)
    for block in (*(f"in_blocks.{n}" for n in half), "mid_block", *(f"out_blocks.{n}" for n in half)):
        shapes[f"encoder.{block}.attn.qkv.weight"] = (3 * dim, dim)
        for name, shape in (linear | ({"skip_linear": (dim, 2 * dim)} if "out" in block else {})).items():
            shapes |= {f"encoder.{block}.{name}.weight": shape, f"encoder.{block}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"encoder.{block}.{name}.weight": (dim,), f"encoder.{block}.{name}.bias": (dim,)}
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


def their_prediction(weights: Weights, image: Tensor, t: int, kept: list[int], label: int | None = None) -> Tensor:
    """What their network predicts for one image `[3, 8, 8]`: `[len(kept), 12]`, rows of pixels with channels last."""
    w = {name: weight.double() for name, weight in weights.items()}
    depth = len({name.split(".")[2] for name in w if name.startswith("encoder.in_blocks.")})

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros((), dtype=torch.double))

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return (
            centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    def block(name: str, x: Tensor, partner: Tensor | None = None) -> Tensor:
        name = f"encoder.{name}"
        if partner is not None:
            x = linear(f"{name}.skip_linear", torch.cat([x, partner], dim=1))
        q, k, v = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", x)).split(DIM, dim=1)
        heads = []
        for part in torch.arange(DIM).split(DIM // HEADS):
            scores = q[:, part] @ k[:, part].T * len(part) ** -0.5
            heads.append(scores.softmax(dim=1) @ v[:, part])
        x = x + linear(f"{name}.attn.proj", torch.cat(heads, dim=1))
        hidden = linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x))
        return x + linear(f"{name}.mlp.fc2", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)

    tokens = torch.nn.functional.conv2d(
        image[None].double(), w["encoder.patch_embed.proj.weight"], w["encoder.patch_embed.proj.bias"], stride=PATCH
    )[0]
    rows = [tokens[:, n // SIDE, n % SIDE] for n in range(SIDE**2)]
    periods = torch.tensor([t * 10_000 ** (-n / (DIM // 2)) for n in range(DIM // 2)], dtype=torch.double)
    extra = [torch.cat([periods.cos(), periods.sin()])]
    if "encoder.label_emb.weight" in w:  # the label stands before the time
        extra.insert(0, w["encoder.uncond_embed"][0] if label is None else w["encoder.label_emb.weight"][label])
    x = torch.stack([*extra, *rows]) + w["encoder.encoder_pos_embed"][0]
    x = x[[*range(len(extra)), *(len(extra) + n for n in kept)]]
    skips = []
    for n in range(depth):
        x = block(f"in_blocks.{n}", x)
        skips.append(x)
    x = block("mid_block", x)
    for n in range(depth):
        x = block(f"out_blocks.{n}", x, skips.pop())
    return linear("encoder_to_output", norm("encoder.norm", x))[len(extra) :]


@pytest.mark.parametrize("depth", [1, 3, 5])
@pytest.mark.parametrize("labels", [None, [2, 0, None]], ids=["unconditional", "classes"])
def test_the_imported_network_predicts_what_theirs_does(depth: int, labels: list[int | None] | None) -> None:
    weights = their_weights(depth, num_classes=3 if labels else None)
    network = import_uvit(weights, num_heads=HEADS)
    images, t = torch.randn(3, 3, 8, 8), torch.tensor([0, 400, 999])
    told = None if labels is None else torch.tensor([network.no_label if one is None else one for one in labels])
    everything = torch.arange(SIDE**2).expand(3, -1)
    masked = torch.tensor([[0, 5, 11], [3, 14, 15], [8, 9, 10]])
    for ids_keep in (None, masked):
        x_t = patchify(images, PATCH)
        found = network(x_t if ids_keep is None else gather_tokens(x_t, ids_keep), t, ids_keep, told)
        for n, ids in enumerate(everything if ids_keep is None else ids_keep):
            expected = their_prediction(weights, images[n], int(t[n]), ids.tolist(), labels[n] if labels else None)
            torch.testing.assert_close(found[n].double(), expected, rtol=1e-5, atol=1e-5)


def test_every_weight_of_theirs_is_in_ours() -> None:
    weights = their_weights(num_classes=3)
    network = import_uvit(weights, HEADS)
    assert sum(p.numel() for p in network.parameters()) == sum(weight.numel() for weight in weights.values())


@pytest.mark.parametrize("dim", NUM_HEADS)
def test_the_papers_networks_need_no_heads(dim: int) -> None:
    network = import_uvit(their_weights(depth=1, dim=dim))
    assert (network.config.num_heads, network.embed_dim, network.depth) == (NUM_HEADS[dim], dim, 1)


def changed(**changes: Tensor | None) -> Weights:
    weights: dict[str, Any] = their_weights() | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: weight for name, weight in weights.items() if weight is not None}


@pytest.mark.parametrize(
    ("weights", "num_heads", "says"),
    [
        ({"encoder__norm__bias": None}, 2, r"^encoder\.norm\.bias is missing; allowed: the weights of a MaskedUViT"),
        ({"encoder__patch_embed__proj__weight": None}, 2, r"^encoder\.patch_embed\.proj\.weight is missing"),
        ({"encoder__time_embed__0__weight": torch.zeros(1)}, 2, r"^encoder\.time_embed\.0\.weight: .* no place for it"),
        ({"decoder_pos_embed": torch.zeros(1)}, 2, r"^decoder_pos_embed: a U-ViT without decoder has no place for it"),
        ({"encoder__norm__bias": torch.zeros(3)}, 2, r"^encoder\.norm\.bias has the shape \[3\]; allowed: \[16\]"),
        ({"encoder__encoder_pos_embed": torch.zeros(1, 16, 16)}, 2, "has 15 places for tokens; allowed: a square grid"),
        (
            {"encoder__encoder_pos_embed": torch.zeros(17)},
            2,
            r"encoder_pos_embed has the shape \[17\]; .* \[1, any, 16\]",
        ),
        ({"encoder__encoder_pos_embed": torch.zeros(1, 0, 16)}, 2, "has -1 places for tokens"),
        ({"encoder__patch_embed__proj__weight": torch.zeros(16, 3, 2, 4)}, 2, r"allowed: \[16, 3, 2, 2\]"),
        ({"encoder__label_emb__weight": torch.zeros(3, 16)}, 2, r"^encoder\.uncond_embed is missing"),
        ({}, None, "embed_dim=16: no weight tells the number of heads; say num_heads"),
        ({}, 0, "num_heads=0; allowed: a whole number from 1"),
        ({}, 3, "embed_dim=16; allowed: an even multiple of num_heads=3"),
    ],
)
def test_what_does_not_fit_is_named(weights: dict[str, Any], num_heads: int | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        import_uvit(changed(**weights), num_heads)
