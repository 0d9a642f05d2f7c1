"""Several trials at a time: each in a process of its own, with its share of the cores, or with one GPU."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from maskdm.runtime.children import end_with_parent
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.interrupts import ctrl_c_is_ours
from maskdm.runtime.progress import STATUS, Work, WorkBar, read_status
from maskdm.runtime.threads import count_cores

POLL_SECONDS = 0.5
PRELOADED = ["maskdm.engine.stages", "mlflow"]
# diffusers asks for a GPU when it is loaded. That starts CUDA, and torch refuses to use it in a copy of a process that
# has started it. With these variables torch answers "none" without asking.
WITHOUT_CUDA = {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
# A worker that is killed cannot free its semaphores. Python's tracker frees them, and warns below our last line.
OF_LEAKS = "ignore:resource_tracker:UserWarning"

T = TypeVar("T")
R = TypeVar("R")


def add_workers(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Give a command the option `--workers N`, which `count_workers` reads."""
    parser.add_argument("--workers", type=int, metavar="N", help=f"{meaning}; without it, one a GPU or core")


def count_workers(arguments: argparse.Namespace) -> int:
    """What `--workers` asks for; without it one for each GPU, or for each core: small networks gain little from two.

    Raises:
        MaskDMError: it is not a positive number.
    """
    if arguments.workers is None:
        return default_workers()
    if arguments.workers < 1:
        raise MaskDMError(f"--workers={arguments.workers}; allowed: a whole number from 1")
    return int(arguments.workers)


def default_workers() -> int:
    """One for each GPU, or for each core."""
    import torch  # not above: what loads it takes seconds, which `load_libraries` uses

    return torch.cuda.device_count() or count_cores()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def run_all(
    function: Callable[[T], R],
    tasks: Sequence[T],
    workers: int,
    unit: str,
    bar: WorkBar | None = None,
    gpus: int = 1,
    threads: int | None = None,
) -> Iterator[R]:
    """What `function(task)` returns for every task, as they end, `workers` at a time.

    Each task has a new process, so that the peak of its memory is its own. The first exception ends all of them.

    Args:
        function: what to do, in a process of its own.
        tasks: what to do it with.
        workers: how many at a time; each has its share of the cores.
        unit: what a task is called.
        bar: what shows how far they are; without one, they are counted.
        gpus: of each task, on a machine that has some.
        threads: of each task; None: its share of the cores. They decide how numbers are rounded.

    Raises:
        MaskDMError: a process was killed, so that it could not say why.
    """
    load_libraries()
    groups = _groups(visible_gpus(), gpus)
    threads = threads or max(1, count_cores() // workers)
    waiting, running, free = list(enumerate(tasks)), dict[Any, _Running](), list(range(workers))
    bar = bar or WorkBar(f"{unit}s", Work([1.0] * len(tasks)))
    with TemporaryDirectory(prefix="maskdm-") as folder:
        try:
            while waiting or running:
                while waiting and free:
                    index, task = waiting.pop(0)
                    place, status = free.pop(0), Path(folder) / str(index)
                    gpu = groups[place % len(groups)] if groups else None
                    here, process = _start(function, task, gpu, status, threads)
                    running[here] = _Running(index, place, process, status)
                for pipe in connection.wait(list(running), POLL_SECONDS):
                    yield _result(pipe, unit)
                    ended = running.pop(pipe)
                    ended.process.join()
                    free.append(ended.place)
                    bar.finish(ended.index)
                statuses = {one.index: read_status(one.status) for one in running.values()}
                bar.show({index: status for index, status in statuses.items() if status})
        finally:
            for one in running.values():
                one.process.terminate()  # it saves its state
            for one in running.values():
                one.process.join()
            bar.close()


def in_a_copy(function: Callable[[T], R], task: T) -> R:
    """`function(task)`, in a copy of the process that has loaded the libraries: this one need not load them.

    Raises:
        MaskDMError: the copy was killed.
    """
    load_libraries()
    pipe, process = _start(function, task, next(iter(visible_gpus()), None), Path(os.devnull), threads=1)
    try:
        return _result(pipe, "copy")
    finally:
        process.terminate()
        process.join()


def load_libraries() -> None:
    """Start the process that loads the libraries: each task begins as a copy of it, which saves seconds a task.

    It returns at once. Who has other things to import does so while that process is at it.
    """
    forkserver.set_forkserver_preload(PRELOADED)
    warnings = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), OF_LEAKS)))
    quiet = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": warnings}  # one bar for all tasks
    with _environment(**quiet, **WITHOUT_CUDA), ctrl_c_is_ours():
        forkserver.ensure_running()


@dataclass(frozen=True)
class _Running:
    """A task under way."""

    index: int
    place: int  # among the workers: it decides on the GPUs
    process: ForkServerProcess
    status: Path


def _groups(gpus: list[str], count: int) -> list[str]:
    """The GPUs of each worker, `count` of them, as CUDA_VISIBLE_DEVICES names them."""
    return [",".join(gpus[start : start + count]) for start in range(0, len(gpus) - count + 1, count)]


def _start(
    function: Callable[[T], R], task: T, gpu: str | None, status: Path, threads: int
) -> tuple[Connection, ForkServerProcess]:
    """A process that does a task, and the pipe through which it hands over what that returns."""
    context = get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(there, function, task, gpu, str(status), threads))
    process.start()
    there.close()  # the child's alone: when it dies, ours ends
    return here, process


def _run(pipe: Connection, function: Callable[[T], R], task: T, gpu: str | None, status: str, threads: int) -> None:
    os.environ[STATUS] = status
    settle(gpu, threads)
    try:
        pipe.send((function(task), None))
    except BaseException as error:
        pipe.send((None, error))


def settle(gpu: str | None, threads: int) -> None:
    """Make a process that has just begun a worker: it ends with its parent, and has a GPU and threads of its own."""
    os.setsid()  # the terminal's Ctrl-C reaches the main process, which asks each worker once to stop
    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # the process it is a copy of may have others
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    import torch
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)  # NumPy's; it has read the variable when it was loaded
    torch.set_num_threads(threads)


def _result(pipe: Any, unit: str) -> Any:
    try:
        result, error = pipe.recv()
    except EOFError:
        raise MaskDMError(f"the process of a {unit} was killed; the same command goes on from here") from None
    if error is not None:
        raise error
    return result


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables that the processes started in the `with` block inherit."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
