"""A proposed profile as text: the settings with comments that say what may be changed, and why they are so."""

import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from maskdm.engine.proposal import Settings

COMMENTS = {
    "recipe": "profiles/recipes/<recipe>.yaml: prediction type, noise schedule, optimizer",
    "data": "images are cropped to a square at the centre and resized",
    "image_size": "pixels a side, a power of two; a smaller one is cheaper",
    "channels": "1: grey, 3: colour",
    "holdout": "images that no arm trains on; null: those in test/, val/ and the like",
    "train_images": "null: all",
    "labels": "the folders are the classes",
    "model": "a U-ViT on tokens of patch_size x patch_size pixels",
    "class_conditional": "true: the network is told the class (with labels: folders)",
    "seeds": "every arm trains with each; intervals are over them",
    "budget.train_flops": "of every arm, pre-training counted in; twice as much takes about twice as long",
    "snapshots": "shares of the budget at which samples are judged",
    "arms": "`share` is of the budget; the last phase has the rest",
    "scratch": "no mask: what the others are compared with",
    "block90": "the paper's default: 2 of 16 blocks are visible",
    "crops": "the best that is known: crops that grow",
    "control": "the steps, tokens a step and learning rates of `crops`, without its masks",
    "controls": "what a control does as well as its arm is not due to the masks",
    "sampler": "one that the recipe's objective knows",
    "extractor": "its distance is fd_effnet_lite0, a stand-in for FID that needs no download",
    "samples": "as many real images are left outside of the reference, for the floor",
    "reference": "training images that samples are compared with",
    "nearest_k": "neighbours of precision, recall, density, coverage and nearest",
    "search.train_flops": "of every trial",
    "search": "which masked pre-training is best at a small budget",
}
FLOW = {"controls", "seeds", "snapshots", "finetune", "confirm_seeds", "space"}  # written on one line

TOGETHER = {"recipe", "baseline", "controls"}  # no empty line before them
WIDTH = 120


def profile_text(settings: Settings, header: Sequence[str]) -> str:
    """The settings as YAML.

    Args:
        settings: of `params.yaml`.
        header: lines that stand above, as comments.
    """
    lines = [wrapped for line in header for wrapped in textwrap.wrap(f"# {line}", WIDTH, subsequent_indent="#   ")]
    for key, value in settings.items():
        lines += [*([] if key in TOGETHER else [""]), *_block(key, value, "")]
    return "\n".join(lines) + "\n"


def _block(key: str, value: Any, indent: str, above: str = "") -> list[str]:
    if key == "arms":
        lines = [_line("arms:", "arms", indent)]
        for arm, phases in value.items():
            lines.append(_line(f"  {arm}:", arm, indent))
            lines += [f"{indent}    - {in_flow(phase)}" for phase in phases]
        return lines
    if isinstance(value, dict) and key not in FLOW:
        inner = [line for name, item in value.items() for line in _block(name, item, indent + "  ", f"{key}.")]
        return [_line(f"{key}:", key, indent), *inner]
    return [_line(f"{key}: {in_flow(value)}", above + key if above + key in COMMENTS else key, indent)]


def _line(text: str, key: str, indent: str) -> str:
    comment = COMMENTS.get(key)
    return f"{indent + text:<28} # {comment}" if comment else indent + text


def in_flow(value: Any) -> str:
    """A value as YAML on one line."""
    match value:
        case dict():
            return "{" + ", ".join(f"{key}: {in_flow(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(in_flow, value)) + "]"
        case str() if re.fullmatch("[a-z][a-z0-9_]*", value):
            return value
        case float() if not 1e-3 <= abs(value) < 1e6 and value:
            return f"{value:.2e}"  # without a point it would be text to some parsers
        case _:
            return json.dumps(value, ensure_ascii=False)
