"""DVC stages `tuning@<name>` and `set_tuning@<name>` of the study: Optuna chooses settings of single arms.

Each arm has as many trials.

python -m pipeline.tune NAME [--workers N]

A trial that is recorded is not trained again; one that was killed goes on.
"""

import argparse
import signal

from maskdm.config.study import load_study
from maskdm.engine.workers import add_workers, count_workers, load_libraries
from maskdm.runtime.errors import MaskDMError, exit_with_one_line
from maskdm.runtime.paths import STUDY


def main() -> None:
    """Tune all arms of a tuning of `study/params.yaml`; write `reports/study/tuning_<name>.csv`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    add_workers(parser, "arms at a time")
    chosen = parser.parse_args()
    with exit_with_one_line():
        study = load_study(STUDY)
        if chosen.name not in study.all_tunings:
            raise MaskDMError(f"{chosen.name}: allowed: one of {', '.join(study.all_tunings) or 'none'}")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: all trials save what they have
        load_libraries()
        from maskdm.engine.tuning import run_tuning  # this process needs some of them, too

        run_tuning(chosen.name, study, count_workers(chosen))


if __name__ == "__main__":
    main()
