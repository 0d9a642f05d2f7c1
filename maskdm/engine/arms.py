"""The arms that a new data set is compared with: those of `params.yaml`, for any grid of tokens and any batch."""

from typing import Any

from maskdm.config.masks import BlockMask, CropMask, Mask, PatchMask, StratifiedMask, fits

Settings = dict[str, Any]

BASELINE, CROPS, CONTROL = "scratch", "crops", "control"
PAPER_RATIO = 0.9
PAPER_SHARE = 0.25
# Crops that grow, of an 8x8 grid: side, share of the compute, batch against a dense one. Found for the default's data
# and network (reports/report.md).
GROWTH = ((4, 0.15, 3.0), (5, 0.25, 2.0), (6, 0.15, 1.5), (7, 0.10, 1.5))


def proposed_arms(side: int, batch_size: int) -> dict[str, list[Settings]]:
    """Scratch, the paper's default, crops that grow, and their control, as settings.

    Args:
        side: tokens a side of the grid, from 4.
        batch_size: of dense steps.
    """
    dense: Settings = {"batch_size": batch_size}
    crops = growing_crops(side, batch_size)
    name, paper = paper_default(side, batch_size)
    return {
        BASELINE: [dense],
        name: [paper, dense],
        CROPS: [*crops, dense],
        CONTROL: [*(_without_mask(phase, side) for phase in crops), dense],
    }


def paper_default(side: int, batch_size: int) -> tuple[str, Settings]:
    """The name and the phase: 2 of 16 blocks, a step of as many tokens as a dense one: scratch is its control."""
    mask = BlockMask(strategy="block", ratio=PAPER_RATIO, block=side // 4)
    batch_size = max(1, round(batch_size * side**2 / mask.num_keep((side, side))))
    return "block90", {"mask": mask.model_dump(), "share": PAPER_SHARE, "batch_size": batch_size}


def growing_crops(side: int, batch_size: int) -> list[Settings]:
    """Phases of crops that grow with the grid; on a small one two of them have the same side and are one phase."""
    phases: dict[int, Settings] = {}
    for eighths, share, batch in GROWTH:
        crop = side * eighths // 8
        if crop in phases:
            phases[crop]["share"] = round(phases[crop]["share"] + share, 4)
            continue
        phases[crop] = {
            "mask": {"strategy": "crop", "crop": crop},
            "share": share,
            "batch_size": round(batch * batch_size),
        }
    return list(phases.values())


def _without_mask(phase: Settings, side: int) -> Settings:
    """The same phase on whole images, with about as many tokens a step."""
    tokens = phase["batch_size"] * phase["mask"]["crop"] ** 2
    unmasked = {key: value for key, value in phase.items() if key != "mask"}
    return unmasked | {"batch_size": max(1, round(tokens / side**2))}


def masks_to_try(side: int) -> list[Mask]:
    """Masks of every kind that fit a grid, of each kind from those that remove little to those that remove much."""
    ratios = (0.5, 0.75, 0.9)
    masks: list[Mask] = [CropMask(strategy="crop", crop=side * eighths // 8) for eighths in (7, 6, 5, 4, 3)]
    for block in sorted({side // 8, side // 4, side // 2} - {0, 1}):
        masks += [BlockMask(strategy="block", ratio=ratio, block=block) for ratio in ratios]
    masks += [StratifiedMask(strategy="stratified", block=2)]
    masks += [PatchMask(strategy="patch", ratio=ratio) for ratio in ratios]
    distinct = {_kind(mask, side): mask for mask in masks if fits(mask, (side, side))}
    return list(distinct.values())


def _kind(mask: Mask, side: int) -> tuple[str, int, int]:
    """The same for masks that do the same."""
    return mask.strategy, getattr(mask, "block", 0), mask.num_keep((side, side))
