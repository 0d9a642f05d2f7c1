"""DVC stage `tuning` of the study: Optuna chooses settings of single arms, each with the same number of trials.

python -m pipeline.tune [--workers N]

A trial that is recorded is not trained again; one that was killed goes on.
"""

import argparse
import signal

from maskdm.config.reading import load_block
from maskdm.config.tuning import Tunings
from maskdm.engine.tuning import run_tunings
from maskdm.engine.workers import add_workers, count_workers
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.paths import STUDY


def main() -> None:
    """Tune all arms of `tunings` in `study/params.yaml`; write `reports/study/tuning.csv`."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_workers(parser, "arms at a time")
    chosen = parser.parse_args()
    with exit_with_one_line():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: all trials save what they have
        run_tunings(load_block(Tunings, "tunings", STUDY), count_workers(chosen))


if __name__ == "__main__":
    main()
