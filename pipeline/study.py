"""DVC stage `part@<name>` of the study: every arm of one part of `study/params.yaml`, with every seed.

python -m pipeline.study PART [--workers N]

A trial that is recorded, in this part or in another one, is not trained again; one that was killed goes on.
"""

import argparse
import signal

from maskdm.config.study import load_study
from maskdm.engine.workers import add_workers, count_workers, load_libraries
from maskdm.runtime.errors import MaskDMError, exit_with_one_line
from maskdm.runtime.paths import STUDY


def main() -> None:
    """Train and judge what is missing; write `records/study/<part>.jsonl`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    add_workers(parser, "trials at a time")
    chosen = parser.parse_args()
    with exit_with_one_line():
        study = load_study(STUDY)
        if chosen.part not in study.all_parts:
            raise MaskDMError(f"{chosen.part}: allowed: one of {', '.join(study.all_parts)}")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: all trials save what they have
        load_libraries()
        from maskdm.engine.comparing import run_part  # this process needs some of them, too

        run_part(chosen.part, study, count_workers(chosen))


if __name__ == "__main__":
    main()
