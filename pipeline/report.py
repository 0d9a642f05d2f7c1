"""DVC stage `report`: tables, figures and the answer, from the settings, the run records and the samples."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from maskdm import figures
from maskdm.analysis import arms_table, distances, heldout_losses, mask_name
from maskdm.config import Params, effective_mask_ratio, load_params, load_recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.errors import MaskDMError, exit_with_one_line
from maskdm.files import reason, write_csv, write_text
from maskdm.records import read_records, read_step_times
from maskdm.report import CAPTIONS, markdown
from maskdm.units import percent
from pipeline.paths import PREPARED, ROOT, STEP_TIME

REFERENCE = ROOT / "records" / "reference.json"
MASKS = ROOT / "runs" / "masks.npz"
REPORTS = ROOT / "reports"
PANEL = 64  # images of a sample grid
MASKED_IMAGES = 10  # columns of the figure of the masks


def main() -> None:
    """Write `reports/`."""
    with exit_with_one_line():
        params = load_params(ROOT / "params.yaml")
        data = PreparedData.open(PREPARED)
        records = read_records(ROOT, ("pretrain", "finetune", "evaluate"))
        with _reading(REFERENCE):
            reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
        times = read_step_times(STEP_TIME)
        losses = heldout_losses(params, records, times)
        measured = distances(params, records, reference, losses)
        arms = arms_table(params, records, losses, measured)
        drawn = draw(params, data, losses, measured)
        recipe = load_recipe(params.recipe, ROOT)
        text = markdown(params, recipe, data.info, records, times, arms, list(drawn))

        for name, figure in drawn.items():
            figures.save(figure, REPORTS / name)
        for name in CAPTIONS.keys() - drawn.keys():  # of an earlier report
            for suffix in ("png", "svg"):
                (REPORTS / f"{name}.{suffix}").unlink(missing_ok=True)
        for name, frame in (("arms", arms), ("heldout_loss", losses), ("distances", measured)):
            write_csv(REPORTS / f"{name}.csv", frame)
        write_text(REPORTS / "report.md", text)


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
        with _reading(path):
            panels[arm] = np.load(path)[:PANEL]
    return panels | {"real, held out": data.heldout[:PANEL]}


def draw_masks(params: Params, data: PreparedData) -> dict[str, Figure]:
    """Whole training images, and below them what every mask of the settings leaves visible.

    Raises:
        MaskDMError: the file of masks is missing or lacks one.
    """
    kept: dict[str, np.ndarray] = {}
    with _reading(MASKS), np.load(MASKS) as file:
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


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise MaskDMError(f"{path}: no such file; `dvc repro` writes it") from None
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise MaskDMError(f"{path}: cannot read it: {reason(error)}") from None


if __name__ == "__main__":
    main()
