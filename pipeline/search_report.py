"""DVC stages `search_report` and `large_search_report`: what a search came to, from its tables and records.

python -m pipeline.search_report [--large]
"""

import argparse

from maskdm.engine.searching import LARGE, SMALL
from maskdm.reporting import figures, search_figures
from maskdm.reporting.search_page import confirmation, markdown, read_table
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.files import reading, write_csv, write_text
from maskdm.runtime.paths import ROOT
from maskdm.tracking.records import read_records


def main() -> None:
    """Write the figure, `confirmation.csv` and `search.md` beside the tables."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.search_report")
    parser.add_argument("--large", action="store_true", help="the study's search")
    place = LARGE if parser.parse_args().large else SMALL
    with exit_with_one_line():
        params, records, reports = place.params(), read_records(ROOT, (place.stage,)), place.reports
        names = ("trials", "curves", "importance")
        trials, curves, importances = (read_table(reports / f"{name}.csv", place.stage) for name in names)
        confirmed = confirmation(trials, records)
        with figures.style():
            drawn = search_figures.draw(trials, curves, importances, params.search.train_flops)
        with reading(reports / "best.yaml", f"the stage {place.stage} writes it"):
            best = (reports / "best.yaml").read_text(encoding="utf-8")

        figures.save(drawn, reports / "trials")
        write_csv(reports / "confirmation.csv", confirmed)
        write_text(reports / "search.md", markdown(params, trials, confirmed, best))


if __name__ == "__main__":
    main()
