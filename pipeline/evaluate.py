"""DVC stage `evaluate@<arm>`: samples of every snapshot of an arm against real images, with every seed.

python -m pipeline.evaluate ARM
"""

import sys

from maskdm.engine.launch import run_stage
from maskdm.runtime.errors import exit_with_one_line


def main() -> None:
    """Judge the snapshots, write `runs/evaluate/<arm>/<seed>/` and `records/default/<arm>.jsonl`."""
    with exit_with_one_line():
        run_stage("evaluate", sys.argv[1:])


if __name__ == "__main__":
    main()
