"""Runs a stage in as many processes as this machine has GPUs, or as the variable MASKDM_PROCESSES says.

python -m pipeline.launch STAGE [KEY]

The command is the same for any number of processes, so that DVC does not take another number for a change. Within
torchrun, which starts the processes of several machines, it runs the stage as it is.
"""

import importlib
import logging
import os
import signal
import sys

from maskdm.errors import MaskDMError, exit_with_one_line
from maskdm.records import count_cores

VARIABLE = "MASKDM_PROCESSES"
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


def count_processes() -> int:
    """How many processes to start here.

    Raises:
        MaskDMError: MASKDM_PROCESSES is not usable.
    """
    import torch  # the stage needs it anyway

    asked, gpus = os.environ.get(VARIABLE, ""), torch.cuda.device_count()
    if not asked:
        return max(1, gpus)
    if not asked.isdecimal() or int(asked) == 0 or (gpus and int(asked) > gpus):
        allowed = f"1 to {gpus}, the GPUs of this machine" if gpus else "a whole number from 1"
        raise MaskDMError(f"{VARIABLE}={asked}; allowed: {allowed}")
    return int(asked)


def start_processes(count: int, arguments: list[str]) -> int:
    """Run this command in `count` processes of torchrun and wait for them; returns the exit status.

    torchrun hands on Ctrl-C and SIGTERM, and ends all processes as soon as one fails.

    Raises:
        MaskDMError: a process was killed, so that it could not say why.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable()  # of torchrun: the stage says itself, in one line, why it stopped
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // count)))  # torchrun's own default is 1
    command = ["--standalone", f"--nproc-per-node={count}", "--module", "pipeline.launch", *arguments]
    try:
        run.run(run.parse_args(command))
    except SignalException:
        return 130
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise MaskDMError(f"process {rank} of {count} was ended by {name}; the same command goes on") from None
        return failure.exitcode
    return 0


if __name__ == "__main__":
    main()
