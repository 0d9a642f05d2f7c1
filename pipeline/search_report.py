"""DVC stages `search_report` and `large_search_report`: what a search came to, from its tables and records.

python -m pipeline.search_report [--large]
"""

import argparse

from maskdm.engine.searching import LARGE, SMALL
from maskdm.reporting.search_report import write_search
from maskdm.runtime.errors import exit_with_one_line


def main() -> None:
    """Write the figure, `confirmation.csv` and `search.md` beside the tables."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.search_report")
    parser.add_argument("--large", action="store_true", help="the study's search")
    place = LARGE if parser.parse_args().large else SMALL
    with exit_with_one_line():
        write_search(place.params(), place.stage, place.reports)


if __name__ == "__main__":
    main()
