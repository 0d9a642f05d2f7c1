"""The processes that share one stage's work. `torchrun` starts them; each computes its part of every batch.

What is drawn at random is drawn for the whole batch on every process, so that their number changes nothing but the
order in which floating-point numbers are added up.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import write_atomically
from maskdm.runtime.torchrun import own_number

TIMEOUT = timedelta(days=1)  # torchrun notices a dead process; a long wait for the first one's metrics is no error
INTERFACE = "GLOO_SOCKET_IFNAME"  # which network interface gloo takes; without it, the one of the machine's name
GRACE_SECONDS = 5.0  # how long a process that fails waits, so that the one that failed first says why


@dataclass(frozen=True)
class Processes:
    """The place of this process among those at the same stage; alone, every method is the identity.

    Attributes:
        rank: 0 to count - 1; process 0, the main one, writes files, logs and draws progress bars.
        count: how many there are, on all machines.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def share(self, total: int, name: str) -> slice:
        """What this process does of `total` images: contiguous parts in order of rank, that differ by one at most.

        Raises:
            MaskDMError: there are fewer images than processes; `name` is the setting that says how many.
        """
        if total < self.count:
            raise MaskDMError(f"{name}={total}; allowed: at least {self.count}, an image for each process")
        return slice(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def replicate(self, network: nn.Module) -> nn.Module:
        """The network with gradients that `backward` averages over the processes; its weights are the main one's."""
        return network if self.count == 1 else DistributedDataParallel(network)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of each process's `value`, on its device and without waiting for it."""
        if self.count == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.count

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any process raises it: the same answer everywhere, and no wait for a GPU."""
        if self.count == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised)

    def gather(self, part: np.ndarray) -> np.ndarray:
        """The parts `[n_rank, ...]` of all processes behind each other, on every process."""
        if self.count == 1:
            return part
        parts: list[np.ndarray] = [part] * self.count
        dist.all_gather_object(parts, part)
        return np.concatenate(parts)

    def wait(self) -> None:
        """Until every process is here."""
        self.agree(False)

    def require_shared(self, folder: Path) -> None:
        """Check that all machines see one folder: else each would go on from files that the others do not have.

        Raises:
            MaskDMError: they see different ones.
        """
        if self.count == 1:
            return
        names: list[str] = [""] * self.count
        dist.all_gather_object(names, uuid4().hex)
        mark = folder / f"shared-{names[0]}"
        if self.is_main:
            write_atomically(mark, lambda _: None)
        self.wait()
        (is_missing,) = self.agree(not mark.is_file())
        if self.is_main:
            mark.unlink()
        if is_missing:
            raise MaskDMError(
                f"{Path.cwd()}: another machine of this torchrun works in another folder; allowed: one that all share"
            )


ALONE = Processes()


@contextmanager
def started_processes() -> Iterator[Processes]:
    """The processes that torchrun started, connected as long as the `with` block lasts; without torchrun, this one.

    When one fails, torchrun ends the others. Often all fail alike, or the others only lose their peer; one message is
    enough. So the main process reports bad input at once, and whoever else fails waits to be ended in silence.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    processes = Processes(own_number("RANK"), int(os.environ["WORLD_SIZE"]))
    try:
        _connect()
        yield processes
        processes.wait()
    except KeyboardInterrupt:
        if processes.is_main:
            raise
        raise SystemExit(130) from None
    except Exception as error:
        if not processes.is_main:
            time.sleep(2 * GRACE_SECONDS)  # torchrun ends this process meanwhile, if the main one has failed as well
        elif not isinstance(error, MaskDMError):
            time.sleep(GRACE_SECONDS)  # and this one, if it has only lost another
        if _has_lost_another(error):  # on a machine that is gone: nobody there can say more
            raise MaskDMError("a process on another machine was lost; the same command goes on from here") from None
        raise
    dist.destroy_process_group()


def _connect() -> None:
    """Let the processes find each other.

    Raises:
        MaskDMError: they do not: the network is not what torchrun or a variable says.
    """
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    except RuntimeError as error:  # gloo's, NCCL's, or a store's
        said, named = str(error).partition("\n")[0], os.environ.get(INTERFACE, "not set")
        raise MaskDMError(
            f"the processes of torchrun do not reach each other: {said}; {INTERFACE} ({named}); allowed: a network "
            "interface that all their machines have; lo on a single one"
        ) from None


def _has_lost_another(error: Exception) -> bool:
    """Whether another process ended in the middle of what both were at: gloo raises nothing more special."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
