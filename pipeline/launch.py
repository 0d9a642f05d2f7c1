"""Runs a stage in as many processes as this machine has GPUs, or as the variable MASKDM_PROCESSES says.

python -m pipeline.launch STAGE [KEY]

The command is the same for any number of processes, so that DVC does not take another number for a change. Within
torchrun, which starts the processes of several machines, it runs the stage as it is.
"""

import importlib
import os
import sys

from maskdm.engine.launch import count_processes, start_processes
from maskdm.runtime.errors import MaskDMError, exit_with_one_line

STAGES = ("step_time", "pretrain", "finetune", "evaluate")


def main() -> None:
    """Run the stage that the command line names."""
    arguments = sys.argv[1:]
    with exit_with_one_line():
        if not arguments or arguments[0] not in STAGES:
            raise MaskDMError(f"{' '.join(arguments) or 'no stage'}: allowed: one of {', '.join(STAGES)}, and its key")
        if "TORCHELASTIC_RUN_ID" not in os.environ and (count := count_processes()) > 1:
            raise SystemExit(start_processes(count, arguments))
    if os.environ.get("RANK", "0") != "0":
        os.environ["TQDM_DISABLE"] = "1"  # one bar for all; tqdm reads it when it is imported
    sys.argv = arguments
    importlib.import_module(f"pipeline.{arguments[0]}").main()


if __name__ == "__main__":
    main()
