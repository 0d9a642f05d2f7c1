"""DVC stages `search_report` and `large_search_report`: what a search came to, from its tables and records.

python -m pipeline.search_report [--large]
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from maskdm import figures, search_figures
from maskdm.config import Params
from maskdm.errors import exit_with_one_line
from maskdm.files import reading, write_csv, write_text
from maskdm.records import read_records
from maskdm.search_report import confirmation, markdown
from pipeline.paths import ROOT
from pipeline.searches import LARGE, SMALL


def main() -> None:
    """Write the figures, `confirmation.csv` and `search.md` beside the tables."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.search_report")
    parser.add_argument("--large", action="store_true", help="the study's search")
    place = LARGE if parser.parse_args().large else SMALL
    with exit_with_one_line():
        params, records, reports = place.params(), read_records(ROOT, (place.stage,)), place.reports
        names = ("trials", "curves", "importance")
        trials, curves, importances = (read_table(reports / f"{name}.csv", place.stage) for name in names)
        confirmed = confirmation(trials, records)
        drawn = draw(params, trials, curves, importances)
        with reading(reports / "best.yaml", f"the stage {place.stage} writes it"):
            best = (reports / "best.yaml").read_text(encoding="utf-8")

        for name, figure in drawn.items():
            figures.save(figure, reports / name)
        write_csv(reports / "confirmation.csv", confirmed)
        write_text(reports / "search.md", markdown(params, trials, confirmed, best, list(drawn)))


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


if __name__ == "__main__":
    main()
