"""The figures of the report, from tables, samples and drawn masks."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from maskdm.config.masks import effective_mask_ratio, mask_name
from maskdm.config.params import Params
from maskdm.datasets.prepared import PreparedData
from maskdm.reporting import figures
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reading
from maskdm.runtime.paths import ROOT
from maskdm.runtime.units import percent

MASKS = ROOT / "runs" / "masks.npz"
WRITTEN = "`dvc repro` writes it"
PANEL = 64  # images of a sample grid
MASKED_IMAGES = 10  # columns of the figure of the masks


def draw(params: Params, data: PreparedData, losses: pd.DataFrame, measured: pd.DataFrame) -> dict[str, Figure]:
    """The figures by name, in the order of the report."""
    colors = figures.arm_colors(list(params.arms), params.baseline)
    costs = {"": "train_flops", "_time": "train_seconds"}
    with figures.style():
        return {
            **{
                f"heldout_loss{suffix}": figures.heldout_loss(losses, colors, params.baseline, cost)
                for suffix, cost in costs.items()
            },
            **{f"distances{suffix}": figures.distances(measured, colors, cost) for suffix, cost in costs.items()},
            "samples": figures.sample_grids(read_samples(params, data)),
            **draw_masks(params, data),
        }


def read_samples(params: Params, data: PreparedData) -> dict[str, np.ndarray]:
    """The samples of each arm, and as many held-out images.

    Raises:
        MaskDMError: an arm has no samples.
    """
    panels = {}
    for arm in params.arms:
        path = ROOT / "runs" / "evaluate" / arm / "samples.npy"
        with reading(path, WRITTEN):
            panels[arm] = np.load(path)[:PANEL]
    return panels | {"real, held out": data.heldout[:PANEL]}


def draw_masks(params: Params, data: PreparedData) -> dict[str, Figure]:
    """Whole training images, and below them what every mask of the settings leaves visible.

    Raises:
        MaskDMError: the file of masks is missing or lacks one.
    """
    kept: dict[str, np.ndarray] = {}
    with reading(MASKS, WRITTEN), np.load(MASKS) as file:
        masks = dict(file)
    for key, phases in params.pretrain.items():
        for index, phase in enumerate(phases):
            name = f"{key}/{index}"
            if name not in masks:
                raise MaskDMError(f"{MASKS}: {name} is missing; `dvc repro` writes it")
            removed = percent(effective_mask_ratio(phase.mask, params.grid))
            title = key if len(phases) == 1 else f"{key}, phase {index + 1}"
            kept[f"{title}: {mask_name(phase.mask)} (effective: {removed})"] = masks[name]
    if not kept:
        return {}
    images = data.train[:MASKED_IMAGES]
    return {"masks": figures.masks(images, {title: mask[: len(images)] for title, mask in kept.items()})}
