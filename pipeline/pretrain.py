"""DVC stage `pretrain@<arm>`: all phases of an arm but the last, with every seed, from freshly drawn weights.

python -m pipeline.pretrain ARM

An arm of one phase leaves the drawn weights themselves. MASKDM_PROCESSES says how many processes share a trial.
"""

import sys

from maskdm.engine.launch import run_stage
from maskdm.runtime.errors import exit_with_one_line


def main() -> None:
    """Train, and write `runs/pretrain/<arm>/<seed>/`."""
    with exit_with_one_line():
        run_stage("pretrain", sys.argv[1:])


if __name__ == "__main__":
    main()
