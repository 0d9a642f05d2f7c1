"""The tables of a search as they were written, and its figures."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from maskdm.config.params import Params
from maskdm.reporting import figures, search_figures
from maskdm.runtime.files import reading


def draw(params: Params, trials: pd.DataFrame, curves: pd.DataFrame, importances: pd.DataFrame) -> dict[str, Figure]:
    """The figures by name, in the order of the page."""
    flops = params.search.train_flops
    with figures.style():
        return {
            "history": search_figures.history(trials, flops),
            "front": search_figures.front(trials, curves, flops),
            "importance": search_figures.importance(importances),
            "parallel_coordinates": search_figures.parallel_coordinates(trials),
        }


def read_table(path: Path, stage: str) -> pd.DataFrame:
    """A table that `stage` writes.

    Raises:
        MaskDMError: it is missing, or is none.
    """
    with reading(path, f"the stage {stage} writes it"):
        return pd.read_csv(path)
