"""The page of a search with its figure and table: read what the search left, analyse it, write."""

from pathlib import Path

from maskdm.config.params import Params
from maskdm.reporting import figures, search_figures
from maskdm.reporting.search_page import confirmation, markdown, read_table
from maskdm.runtime.files import reading, write_csv, write_text
from maskdm.runtime.paths import ROOT
from maskdm.tracking.records import Stage, read_records


def write_search(params: Params, stage: Stage, reports: Path) -> None:
    """Write the figure, `confirmation.csv` and `search.md` beside the tables of a search.

    Args:
        params: its settings.
        stage: of its records.
        reports: the folder with its tables.

    Raises:
        MaskDMError: a file is missing or damaged.
    """
    records = read_records(ROOT, (stage,))
    trials, curves, importances = (
        read_table(reports / f"{name}.csv", stage) for name in ("trials", "curves", "importance")
    )
    confirmed = confirmation(trials, records)
    with figures.style():
        drawn = search_figures.draw(trials, curves, importances, params.search.train_flops)
    with reading(reports / "best.yaml", f"the stage {stage} writes it"):
        best = (reports / "best.yaml").read_text(encoding="utf-8")

    figures.save(drawn, reports / "trials")
    write_csv(reports / "confirmation.csv", confirmed)
    write_text(reports / "search.md", markdown(params, trials, confirmed, best))
