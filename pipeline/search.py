"""DVC stages `search` and `large_search`: which pre-training is best at equal compute, and whether that holds.

python -m pipeline.search [--large] [--workers N] [--join]

The same command goes on after a kill, and does nothing that is done. MASKDM_SEARCH_STORAGE names a database in which
several machines share the study; --join works and leaves the results to the stage.
"""

import argparse
import signal

from maskdm.engine.judge import Judge
from maskdm.engine.project import exclusive
from maskdm.engine.searching import LARGE, SMALL, VARIABLE, Search, run_workers, storage_url, write_results
from maskdm.engine.workers import add_workers, count_workers, load_libraries
from maskdm.runtime.errors import MaskDMError, exit_with_one_line
from maskdm.search import one_line_failures, revive


def main() -> None:
    """Search, confirm, and write records and tables."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.search")
    parser.add_argument("--large", action="store_true", help="the study's search, of study/params.yaml")
    add_workers(parser, "processes that work at the study")
    parser.add_argument("--join", action="store_true", help=f"only work at the study in ${VARIABLE}, on this machine")
    arguments = parser.parse_args()
    with exit_with_one_line():
        load_libraries()  # while this process opens the search
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: workers save what they have
        found = Search.open(LARGE if arguments.large else SMALL)
        workers = min(count_workers(arguments), found.project.params.search.parallel)  # more would wait
        if arguments.join and not storage_url():
            raise MaskDMError(f"{VARIABLE} is not set; allowed: the URL of the database that the machines share")
        with one_line_failures(storage_url(), found.folder):
            if arguments.join:
                run_workers(found, workers, joined=True)
                return
            with exclusive(found.folder):
                Judge.open(found.trial(()), found.folder)  # what confirming needs should fail now, not then
                revive(found.study())
                run_workers(found, workers, joined=False)
                write_results(found)


if __name__ == "__main__":
    main()
