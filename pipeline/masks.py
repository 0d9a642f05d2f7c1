"""DVC stage `masks`: a few drawn masks of every group of images that is masked, for the pictures of the methods."""

import numpy as np
import torch

from maskdm.config.masks import Mask
from maskdm.config.reading import load_params
from maskdm.methods.masks import draw_ids_keep
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.files import write_atomically
from maskdm.runtime.paths import ROOT
from maskdm.runtime.seeding import generator

OUT = ROOT / "runs" / "masks.npz"
COUNT = 16


def main() -> None:
    """Write `runs/masks.npz`: "<arm>/<phase>/<group>" -> bool `[COUNT, rows, columns]`, True where kept."""
    with exit_with_one_line():
        params = load_params(ROOT / "params.yaml")
        drawn = {
            f"{arm}/{index}/{number}": visible(group.mask, params.grid)
            for arm, phases in params.arms.items()
            for index, phase in enumerate(phases)
            for number, group in enumerate(phase.groups)
            if group.mask
        }
        write_atomically(OUT, lambda file: np.savez(file, **drawn))  # type: ignore[arg-type]  # numpy's own stub errs


def visible(mask: Mask, grid: tuple[int, int]) -> np.ndarray:
    """`COUNT` masks as pictures."""
    ids_keep = draw_ids_keep(mask, grid, COUNT, generator("cpu", 0, "masks"))
    kept = torch.zeros(COUNT, grid[0] * grid[1], dtype=torch.bool).scatter_(1, ids_keep, True)
    return kept.reshape(COUNT, *grid).numpy()


if __name__ == "__main__":
    main()
