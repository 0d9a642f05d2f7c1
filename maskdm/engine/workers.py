"""Several trials at a time: each in a process of its own, with its share of the cores, or with one GPU."""

import argparse
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.threads import count_cores

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
        return torch.cuda.device_count() or count_cores()
    if arguments.workers < 1:
        raise MaskDMError(f"--workers={arguments.workers}; allowed: a whole number from 1")
    return int(arguments.workers)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def run_all(function: Callable[[T], R], tasks: Sequence[T], workers: int, unit: str) -> Iterator[R]:
    """What `function(task)` returns for every task, as they end, `workers` at a time.

    Each task has a new process, so that the peak of its memory is its own. The first exception ends all of them.

    Raises:
        MaskDMError: a process was killed, so that it could not say why.
    """
    context, gpus = get_context("spawn"), visible_gpus()
    waiting, running = list(enumerate(tasks)), dict[Any, Any]()  # a task's pipe -> its process
    with (
        _environment(TQDM_DISABLE="1", OMP_NUM_THREADS=str(max(1, count_cores() // workers))),
        tqdm(total=len(tasks), unit=unit) as bar,  # the one bar
    ):
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    index, task = waiting.pop(0)
                    here, there = context.Pipe(duplex=False)
                    process = context.Process(
                        target=_run, args=(there, function, task, gpus[index % len(gpus)] if gpus else None)
                    )
                    process.start()
                    there.close()  # the child's alone: when it dies, ours ends
                    running[here] = process
                for pipe in connection.wait(list(running)):
                    yield _result(pipe, unit)
                    running.pop(pipe).join()
                    bar.update()
        finally:
            for process in running.values():
                process.terminate()  # it saves its state
            for process in running.values():
                process.join()


def end_with_parent() -> None:
    """Let this process die with the one that started it: its next run must find nobody at work."""
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _run(pipe: Connection, function: Callable[[T], R], task: T, gpu: str | None) -> None:
    end_with_parent()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        pipe.send((function(task), None))
    except BaseException as error:
        pipe.send((None, error))


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
