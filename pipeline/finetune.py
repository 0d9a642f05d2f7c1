"""DVC stage `finetune@<arm>`: the last phase of an arm, with every seed, with the rest of its budget.

python -m pipeline.finetune ARM
"""

import sys

from maskdm.engine.launch import run_stage
from maskdm.runtime.errors import exit_with_one_line


def main() -> None:
    """Train on from the pre-training, and write `runs/finetune/<arm>/<seed>/`."""
    with exit_with_one_line():
        run_stage("finetune", sys.argv[1:])


if __name__ == "__main__":
    main()
