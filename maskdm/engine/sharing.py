"""What a trial gets of the machine: how many train at a time, with how many processes and threads each."""

import logging
import os
import signal

from maskdm.engine.workers import visible_gpus
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.interrupts import handlers_kept
from maskdm.runtime.threads import count_cores, wanted_threads

VARIABLE = "MASKDM_PROCESSES"


def count_processes(trials: int) -> int:
    """How many processes to start for a trial: its share of the GPUs, or what MASKDM_PROCESSES says.

    Raises:
        MaskDMError: MASKDM_PROCESSES is not usable.
    """
    asked, gpus = os.environ.get(VARIABLE, ""), len(visible_gpus())
    if not asked:
        return max(1, gpus // trials)
    if not asked.isdecimal() or int(asked) == 0 or (gpus and int(asked) > gpus):
        allowed = f"1 to {gpus}, the GPUs of this machine" if gpus else "a whole number from 1"
        raise MaskDMError(f"{VARIABLE}={asked}; allowed: {allowed}")
    return int(asked)


def count_workers(trials: int, processes: int) -> int:
    """How many trials of so many processes each run at a time: as many as there are GPUs or cores for."""
    return min(trials, max(1, (len(visible_gpus()) or count_cores()) // processes))


def take_threads(trials: int, processes: int) -> int:
    """Use as many threads as a process has that trains when there are so many trials; returns how many train at a time.

    Who times a step does that alone, with as many threads: others beside it would have it wait for them.
    """
    import torch

    workers = count_workers(trials, processes)
    torch.set_num_threads(max(1, count_cores() // (workers * processes)))
    return workers


def start_processes(count: int, module: str, arguments: list[str]) -> int:
    """Run `python -m module ...` in `count` processes of torchrun and wait for them; returns the exit status.

    torchrun hands on Ctrl-C and SIGTERM, and ends all processes as soon as one fails.

    Raises:
        MaskDMError: a process was killed, so that it could not say why.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable()  # of torchrun: the stage says itself, in one line, why it stopped
    os.environ["OMP_NUM_THREADS"] = str(max(1, wanted_threads() // count))  # torchrun's own default is 1 each
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]  # options of torchrun that a cluster sets: with PET_NNODES=2 it would wait for a machine
    # By its number: the name of a machine without a network may stand for nothing, and the processes would look for it.
    command = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={count}", "--module", module, *arguments]
    try:
        with handlers_kept():
            torchrun.run(torchrun.parse_args(command))
    except SignalException:
        return 130
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise MaskDMError(f"process {rank} of {count} was ended by {name}; the same command goes on") from None
        return failure.exitcode
    return 0
