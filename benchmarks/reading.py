"""Images a second that training can read, against what a GPU takes with each profile: `python -m benchmarks.reading`.

It needs 1 GB of room on the disk.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import numpy as np
import pandas as pd
import torch

from maskdm.config.params import Params
from maskdm.config.reading import load_params, recipe_of
from maskdm.datasets.prepared import IMAGES_FILE, PreparedData
from maskdm.engine.profiles import profile_names, profile_path
from maskdm.runtime.threads import count_cores
from maskdm.training.loop import BatchLoader
from maskdm.training.plan import PhasePlan, arm_plans

GPU_FLOPS = 0.4 * 989e12  # of an H100 (SXM): 40 % of its dense bf16 rate
FILE_BYTES = 1 << 30  # of the prepared array that is read
SECONDS = 3.0  # of reading


@dataclass(frozen=True)
class Demand:
    """The phase of a profile whose images a GPU has done with first."""

    params: Params
    plan: PhasePlan
    arm: str

    @property
    def rate(self) -> float:
        """Images a second."""
        return GPU_FLOPS * self.plan.batch_size / self.plan.step_flops


def demand(profile: str) -> Demand:
    """Of all phases of all arms."""
    params = load_params(profile_path(profile))
    recipe = recipe_of(params)
    phases = [Demand(params, plan, arm) for arm in params.arms for plan in arm_plans(params, recipe, arm)]
    return max(phases, key=lambda phase: phase.rate)


@contextmanager
def array_on_disk(shape: tuple[int, int, int]) -> Iterator[Path]:
    """A prepared array of random pixels, of `FILE_BYTES`, that nothing maps: what is mapped stays in memory."""
    with TemporaryDirectory() as folder:
        path, random = Path(folder) / IMAGES_FILE, np.random.default_rng(0)
        count, size = FILE_BYTES // int(np.prod(shape)), int(np.prod(shape))
        with path.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(count):
                file.write(random.bytes(size))
            file.flush()
            os.fsync(file.fileno())
        yield path


def read_rate(path: Path, plan: PhasePlan, cold: bool, mirror: bool = False) -> float:
    """Images a second of the training's own loader, every second one mirrored if so; with a GPU, that does it.

    From the disk by the clock; from memory by the time of a core, which does not depend on what else the machine does.
    """
    if cold:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    images, now = np.load(path, mmap_mode="r"), perf_counter if cold else process_time
    if not cold:
        images.max()
    loader = BatchLoader(
        PreparedData(images, None, {"train": len(images)}),
        *(plan, 0, slice(0, plan.batch_size)),
        with_labels=False,
    )
    mirrored = (torch.rand(plan.batch_size) < 0.5)[:, None, None, None]
    # From the disk each image once at most: read again it would come from memory.
    steps = min(plan.steps, len(images) // plan.batch_size) if cold else plan.steps
    loader(1)
    started, began, step = now(), perf_counter(), 1
    while step < steps and perf_counter() - began < SECONDS:
        step += 1
        batch, _ = loader(step)
        if mirror:
            torch.where(mirrored, batch.flip(-1), batch)
    seconds = now() - started
    loader.close()
    return (step - 1) * plan.batch_size / seconds


def margins() -> pd.DataFrame:
    """A row a profile."""
    rows = []
    for profile in profile_names():
        wanted = demand(profile)
        data, plan = wanted.params.data, wanted.plan
        with array_on_disk((data.channels, data.image_size, data.image_size)) as path:
            warm, mirrored = (read_rate(path, plan, cold=False, mirror=mirror) for mirror in (False, True))
            cold = read_rate(path, plan, cold=True)
        size = data.channels * data.image_size**2
        rows.append(
            {
                "profile": profile,
                "hungriest phase": f"{wanted.arm}, {plan.removed:.0%} removed, batch {plan.batch_size}",
                "GFLOPs an image": f"{plan.step_flops / plan.batch_size / 1e9:.3g}",
                "a GPU takes images/s": f"{wanted.rate:,.0f}",
                "MB/s": f"{wanted.rate * size / 1e6:,.0f}",
                "from memory, images/s of a core": f"{warm:,.0f}",
                "margin": f"{warm / wanted.rate:.2g}",
                "and mirrored by it": f"{mirrored:,.0f}",
                "from the disk, images/s": f"{cold:,.0f}",
                "margin ": f"{cold / wanted.rate:.2g}",
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Print the table."""
    print(margins().to_markdown(index=False))
    print(f"\n{count_cores()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
