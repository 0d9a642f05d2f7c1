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


def import_uvit(theirs: Mapping[str, Tensor], num_heads: int | None = None) -> UViT:
    """A U-ViT with the weights `theirs`, each used once; all sizes but one are read off them.

    Args:
        theirs: the state dict of a `MaskedUViT` without a decoder.
        num_heads: attention heads; None: by `NUM_HEADS`.

    Raises:
        ValueError: a weight is missing, has another shape or no place in a U-ViT, or `num_heads` is needed.
    """
    network = UViT(**_sizes(theirs, num_heads))
    left = dict(theirs)
    ours = _reordered(left)
    own = network.state_dict()
    sources = {name: _their_name(name) for name in own if name not in ours}
    ours |= {name: _taken(left, source) for name, source in sources.items()}
    if left:
        raise ValueError(f"{next(iter(left))}: a U-ViT without decoder has no place for it")
    for name, weight in ours.items():
        if weight.shape != own[name].shape:
            found, wanted = (list(each.shape) for each in (weight, own[name]))
            raise ValueError(
                f"{sources.get(name, name)} has the shape {found}; allowed: {wanted}, by the other weights"
            )
    network.load_state_dict({name: weight.float() for name, weight in ours.items()})
    return network


def _sizes(theirs: Mapping[str, Tensor], num_heads: int | None) -> dict[str, Any]:
    """The arguments of the U-ViT that `theirs` belong to."""
    patches, positions = (_get(theirs, name) for name in (PATCHES, POSITIONS))
    embed_dim, in_channels, patch_size, _ = patches.shape
    num_classes = len(theirs[LABELS]) if LABELS in theirs else None
    num_tokens = positions.shape[1] - (1 if num_classes is None else 2)
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise ValueError(f"{POSITIONS} has {num_tokens} places for tokens; allowed: a square grid of them")
    if num_heads is not None and num_heads < 1:
        raise ValueError(f"num_heads={num_heads}; allowed: a whole number from 1")
    if num_heads is None and embed_dim not in NUM_HEADS:
        known = ", ".join(f"{heads} for {dim}" for dim, heads in NUM_HEADS.items())
        raise ValueError(
            f"embed_dim={embed_dim}: no weight says how many heads there are; say num_heads (known: {known})"
        )
    return {
        "image_size": (side * patch_size, side * patch_size),
        "patch_size": patch_size,
        "in_channels": in_channels,
        "embed_dim": embed_dim,
        "depth": 2 * len({name for name in theirs if re.fullmatch(r"encoder\.in_blocks\.\d+\.norm1\.weight", name)})
        + 1,
        "num_heads": NUM_HEADS[embed_dim] if num_heads is None else num_heads,
        "num_classes": num_classes,
    }


def _reordered(left: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights that are theirs in another order; those are taken out of `left`."""
    labels = {}
    if LABELS in left:
        labels["label_embed.weight"] = torch.cat([_taken(left, LABELS), _taken(left, NO_LABEL)])
    positions = _taken(left, POSITIONS)[0]
    extra = 2 if labels else 1
    return labels | {
        # They embed a patch by a convolution, [channel, row, column]; our tokens are [row, column, channel].
        "patch_embed.weight": rearrange(_taken(left, PATCHES), "d c p q -> d (p q c)"),
        "pos_embed": positions[extra:],
        "extra_pos_embed": positions[:extra].flip(0),  # theirs: label, then time; ours: time, then label
    }


def _their_name(ours: str) -> str:
    """The name of a weight of ours that is theirs as it stands."""
    name = ours.replace("mlp.0.", "mlp.fc1.").replace("mlp.2.", "mlp.fc2.")
    if name.startswith("head."):
        return name.replace("head.", "encoder_to_output.")
    return "encoder." + name.replace("patch_embed.", "patch_embed.proj.")


def _get(theirs: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in theirs:
        raise ValueError(f"{name} is missing; allowed: the weights of a MaskedUViT")
    return theirs[name]


def _taken(left: dict[str, Tensor], name: str) -> Tensor:
    weight = _get(left, name)
    del left[name]
    return weight
