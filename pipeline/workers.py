"""Several trials at a time: each in a process of its own, with its share of the cores, or with one GPU."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch
from tqdm import tqdm

from maskdm.records import count_cores

T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    """One for each GPU; without a GPU, one for each core: small networks gain little from a second core."""
    return torch.cuda.device_count() or count_cores()


def run_all(function: Callable[[T], R], tasks: Sequence[T], workers: int, unit: str) -> Iterator[R]:
    """What `function(task)` returns for every task, as they end, `workers` at a time.

    Each task has a new process, so that the peak of its memory is its own. The first exception ends all of them.
    """
    gpus = torch.cuda.device_count()
    quiet = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(max(1, count_cores() // workers))}  # one bar, of all tasks
    before = dict(os.environ)
    os.environ.update(quiet)  # spawned processes inherit it
    try:
        with (
            ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool,
            tqdm(total=len(tasks), unit=unit, disable=None) as bar,
        ):
            futures = [
                pool.submit(_on_gpu, function, task, index % gpus if gpus else None) for index, task in enumerate(tasks)
            ]
            try:
                for future in as_completed(futures):
                    yield future.result()
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()  # SIGTERM: it saves its state
                raise
    finally:
        os.environ.clear()
        os.environ.update(before)


def _on_gpu(function: Callable[[T], R], task: T, gpu: int | None) -> R:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    return function(task)
