"""The weights of MaskDM's authors (github.com/jiachenlei/maskdm, class `MaskedUViT`) as those of our U-ViT."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from maskdm.networks.uvit import UViT

NUM_HEADS = {512: 8, 768: 12}  # by embed_dim, of their `small` and `base`: no weight tells it

PATCHES, POSITIONS = "encoder.patch_embed.proj.weight", "encoder.encoder_pos_embed"
LABELS, NO_LABEL = "encoder.label_emb.weight", "encoder.uncond_embed"
IN_BLOCK = r"encoder\.in_blocks\.\d+\.norm1\.weight"  # one of every block before the middle one


def import_uvit(theirs: Mapping[str, Tensor], num_heads: int | None = None) -> UViT:
    """A U-ViT with the weights `theirs`, each used once; all sizes but one are read off them.

    Args:
        theirs: the state dict of a `MaskedUViT` without a decoder.
        num_heads: attention heads; None: by `NUM_HEADS`.

    Raises:
        ValueError: a weight is missing, has another shape or no place in a U-ViT, or `num_heads` is needed.
    """
    network = UViT(**_sizes(theirs, num_heads))
    own = network.state_dict()
    left = dict(theirs)
    ours = _reordered(left)
    for name, weight in own.items():
        if name not in ours:
            ours[name] = _weight(left, source := _their_name(name), *weight.shape)
            del left[source]
    if left:
        raise ValueError(f"{next(iter(left))}: a U-ViT without decoder has no place for it")
    network.load_state_dict({name: weight.float() for name, weight in ours.items()})
    return network


def _sizes(theirs: Mapping[str, Tensor], num_heads: int | None) -> dict[str, Any]:
    """The arguments of the U-ViT that `theirs` belong to; the weights that tell them have shapes that go together."""
    embed_dim, in_channels, patch_size, _ = _weight(theirs, PATCHES, None, None, None, None).shape
    _weight(theirs, PATCHES, embed_dim, in_channels, patch_size, patch_size)
    num_tokens, num_classes = _weight(theirs, POSITIONS, 1, None, embed_dim).shape[1] - 1, None
    if LABELS in theirs:
        num_tokens, num_classes = num_tokens - 1, len(_weight(theirs, LABELS, None, embed_dim))
        _weight(theirs, NO_LABEL, 1, embed_dim)
    side = math.isqrt(max(0, num_tokens))
    if side == 0 or side**2 != num_tokens:
        raise ValueError(f"{POSITIONS} has {num_tokens} places for tokens; allowed: a square grid of them")
    return {
        "image_size": (side * patch_size, side * patch_size),
        "patch_size": patch_size,
        "in_channels": in_channels,
        "embed_dim": embed_dim,
        "depth": 2 * sum(re.fullmatch(IN_BLOCK, name) is not None for name in theirs) + 1,
        "num_heads": _heads(embed_dim, num_heads),
        "num_classes": num_classes,
    }


def _heads(embed_dim: int, num_heads: int | None) -> int:
    if num_heads is None and embed_dim not in NUM_HEADS:
        known = ", ".join(f"{heads} for {dim}" for dim, heads in NUM_HEADS.items())
        raise ValueError(f"embed_dim={embed_dim}: no weight tells the number of heads; say num_heads (known: {known})")
    heads = NUM_HEADS[embed_dim] if num_heads is None else num_heads
    if heads < 1:
        raise ValueError(f"num_heads={heads}; allowed: a whole number from 1")
    return heads


def _reordered(left: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights that are theirs in another order; those are taken out of `left`."""
    positions, labels, extra = left.pop(POSITIONS)[0], {}, 1
    if LABELS in left:
        labels, extra = {"label_embed.weight": torch.cat([left.pop(LABELS), left.pop(NO_LABEL)])}, 2
    return labels | {
        # They embed a patch by a convolution, [channel, row, column]; our tokens are [row, column, channel].
        "patch_embed.weight": rearrange(left.pop(PATCHES), "d c p q -> d (p q c)"),
        "pos_embed": positions[extra:],
        "extra_pos_embed": positions[:extra].flip(0),  # theirs: label, then time; ours: time, then label
    }


def _their_name(ours: str) -> str:
    """The name of a weight of ours that is theirs as it stands."""
    name = ours.replace("mlp.0.", "mlp.fc1.").replace("mlp.2.", "mlp.fc2.")
    if name.startswith("head."):
        return name.replace("head.", "encoder_to_output.")
    return "encoder." + name.replace("patch_embed.", "patch_embed.proj.")


def _weight(theirs: Mapping[str, Tensor], name: str, *shape: int | None) -> Tensor:
    """The weight `name` of a shape in which None is any size.

    Raises:
        ValueError: it is missing or has another shape.
    """
    if name not in theirs:
        raise ValueError(f"{name} is missing; allowed: the weights of a MaskedUViT")
    found = theirs[name].shape
    if len(found) != len(shape) or any(one not in (None, other) for one, other in zip(shape, found, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has the shape {list(found)}; allowed: [{wanted}], by the other weights")
    return theirs[name]
