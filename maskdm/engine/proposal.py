"""Settings for images that nobody has trained on yet: what follows from the images, the network and the budget."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.datasets.survey import Survey
from maskdm.engine.arms import BASELINE, CONTROL, CROPS, growing_crops, proposed_arms
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.units import percent
from maskdm.training.plan import arm_plans, build_network

Settings = dict[str, Any]

RECIPE = "tuned"
FEWEST = 100  # images: with fewer neither a distance nor a held-out loss says anything
SIDES = (8, 16, 32, 64, 128, 256)  # pixels of an image
# At most: images that are held out, and the default's numbers of samples and of the images they are compared with.
HELDOUT, SAMPLES, REFERENCE = 1024, 1000, 10_000
SEARCH, TRIALS = 0.2, 16  # of an arm's compute, for each trial of the search
# Below which a note says what they cannot show: images, held-out images, and the seeds that intervals are over.
FEW, FEW_HELDOUT, FEW_SEEDS = 5000, 256, 4
CROPPED = 0.25  # of the area, above which a note says what the square crop removes


def settings_of(
    found: Survey,
    root: str,
    image_size: int,
    network: tuple[int, int, int],
    batch_size: int,
    seeds: int,
    train_flops: float,
    lr: float,
) -> Settings:
    """All of `params.yaml`.

    Args:
        found: what the images are.
        root: where they are.
        image_size: pixels a side.
        network: width, blocks and heads of a U-ViT.
        batch_size: of dense steps.
        seeds: how many.
        train_flops: the budget of an arm.
        lr: the recipe's learning rate.
    """
    patch_size = patch_side(image_size)
    width, depth, heads = network
    model = {"patch_size": patch_size, "embed_dim": width, "depth": depth, "num_heads": heads}
    data = _data(found, root, image_size)
    side = image_size // patch_size
    return {
        "recipe": RECIPE,
        "data": data,
        "model": model | {"class_conditional": False},
        "seeds": list(range(1, seeds + 1)),
        "budget": {"train_flops": train_flops, "snapshots": [0.5, 1.0]},
        "heldout": {"images": min(HELDOUT, data["holdout"] or found.heldout or 0), "points": 10},
        "arms": proposed_arms(side, batch_size),
        "baseline": BASELINE,
        "controls": {CONTROL: CROPS},
        "sampling": {"sampler": "unipc", "num_inference_steps": 10, "eta": 0.0, "batch_size": 250},
        "evaluation": _evaluation(found, image_size),
        "search": {
            "seed": 0,
            "train_flops": two_digits(SEARCH * train_flops),
            "trials": TRIALS,
            "parallel": 4,
            "space": _space(side, batch_size, lr),
            "finetune": {"batch_size": batch_size // 2},
            "confirm": 1,
            "confirm_seeds": [101, 102],
        },
    }


def patch_side(image_size: int) -> int:
    """Pixels a side of a token: a grid of 4x4 tokens for 8 pixels, of 8x8 for 16 and 32, of 16x16 above."""
    return max(2, min(4, image_size // 8), image_size // 16)


def fitting_side(found: Survey, limit: int) -> int:
    """The size nearest to that of the images, up to `limit`."""
    return min(limit, max(SIDES[0], 2 ** round(math.log2(found.side))))


def check_side(image_size: int) -> None:
    """Refuse a size that no proposal fits.

    Raises:
        MaskDMError: so it is.
    """
    if image_size not in SIDES:
        raise MaskDMError(f"--image-size={image_size}; allowed: {', '.join(map(str, SIDES))}")


def check_count(found: Survey) -> None:
    """Refuse images that are too few for any answer.

    Raises:
        MaskDMError: so it is.
    """
    if found.usable < FEWEST:
        raise MaskDMError(
            f"{found.usable} different images can be read; allowed: at least {FEWEST}, as fewer show nothing"
        )
    if found.heldout is not None and min(found.heldout, found.usable - found.heldout) < FEWEST // 4:
        raise MaskDMError(
            f"the folders split {found.count} images into {found.count - found.heldout} for training and "
            f"{found.heldout} held out; allowed: at least {FEWEST // 4} on each side"
        )


def _data(found: Survey, root: str, image_size: int) -> Settings:
    return {
        "name": "image_folder",
        "root": root,
        "image_size": image_size,
        "channels": 3 if found.in_colour else 1,
        "holdout": None if found.heldout is not None else min(HELDOUT, found.usable // 5),
        "train_images": None,
    } | ({"labels": "folders"} if found.classes else {})


def _evaluation(found: Survey, image_size: int) -> Settings:
    """As many samples as real images are left outside of the reference: then the floor is measured on as many."""
    usable = round(0.98 * found.usable) if found.looked_at < found.count else found.usable  # if more are damaged
    samples = min(SAMPLES, usable // 2)
    heldout = min(HELDOUT, found.usable // 5) if found.heldout is None else found.heldout
    return {
        "extractor": "effnet_lite0",
        "input_size": 96 if image_size <= 64 else 224,
        "weights": None,
        "batch_size": 16,
        "samples": samples,
        "reference": min(REFERENCE, usable - max(samples, heldout)),
        "kid_subsets": 100,
        "kid_subset_size": min(500, samples // 2),
        "nearest_k": 3,
    }


def _space(side: int, batch_size: int, lr: float) -> Settings:
    crops = [phase["mask"]["crop"] for phase in growing_crops(side, batch_size)]
    return {
        "strategies": ["patch", "block", "crop"],
        "ratios": [0.25, 0.5, 0.75, 0.9],
        "blocks": sorted({max(2, side // 4), side // 2}),
        "crops": sorted({side // 4, *crops}),
        "max_phases": 2,
        "share": [0.1, 0.6],
        "batch_sizes": [batch_size, 2 * batch_size, 4 * batch_size],
        "lr": [float(f"{lr / 3:.2g}"), float(f"{3.3 * lr:.2g}")],
    }


def two_digits(number: float) -> float:
    """Rounded to two significant digits."""
    return float(f"{number:.1e}")


def size_in_millions(params: Params) -> float:
    """Parameters of the network."""
    with torch.device("meta"):
        return build_network(params.model, params.data, num_classes=1).num_parameters() / 1e6


def notes(found: Survey, params: Params, recipe: Recipe) -> Iterator[str]:
    """What the settings cannot show on these images, and what of the images is lost."""
    heldout = params.data.holdout or found.heldout or 0
    plan = arm_plans(params, recipe, BASELINE)[-1]
    train = found.usable - heldout
    samples = params.evaluation.samples
    if found.usable < FEW:
        yield (
            f"{train:,} training images are few: {BASELINE} sees each about "
            f"{plan.images_seen(plan.steps) / train:.0f} times, and may learn them by heart. "
            "The held-out loss shows that, and `nearest` near 0; the distance to training images does not."
        )
    if samples < SAMPLES:
        yield (
            f"Distances by {samples} samples are too large and noisy: compare arms by them, and with the floor, "
            "which is that of about as many real images, and not with distances of other data sets."
        )
    if heldout < FEW_HELDOUT:
        yield f"The held-out loss is that of {heldout} images: differences of a few percent may be due to these images."
    if len(params.seeds) < FEW_SEEDS:
        yield f"There is time for {len(params.seeds)} seeds: intervals over them are wide. More --hours give more."
    lost = sorted(found.cropped)[len(found.cropped) // 2]
    if lost > CROPPED:
        yield f"Half of the images lose {percent(round(lost, 2))} of their area or more to the square crop."
    if found.side < params.data.image_size:
        yield f"Half of the images have a side of {found.side} pixels or less, and are enlarged."
    if found.damaged or found.copies:
        yield f"Left out of training: {found.damaged:,} unreadable files, and copies of held-out images."
    if found.classes:
        yield "Folders look like classes: model.class_conditional: true trains with them."
