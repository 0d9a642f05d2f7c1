"""Images a second of `prepare`, in turn with Pillow alone in as many processes: `python -m benchmarks.prepare`."""

import argparse
import io
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import numpy as np
import pandas as pd
from PIL import Image

from maskdm.config.params import Data
from maskdm.datasets.decoded import CHUNK
from maskdm.datasets.images import square_pixels
from maskdm.datasets.prepare import prepare
from maskdm.runtime.threads import count_cores

ROUNDS = 3
COPIES = 16  # of each file: making them takes longer than decoding them
# name: width and height of the files, pixels a side of the prepared images, different files
FOLDERS = {"CelebA, 178x218 to 64": (178, 218, 64, 100), "LSUN, 341x256 to 256": (341, 256, 256, 40)}
QUALITY = 90  # of the JPEG files
ALONE = "Pillow, JPEG alone"

Work = Callable[[list[Path], int], None]


def photographs(folder: Path, width: int, height: int, count: int) -> None:
    """Write `count` different crops of the two photographs that scikit-learn carries, each `COPIES` times."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    random = np.random.default_rng(0)
    for index in range(count):
        photo = photos[index % len(photos)]
        scale = random.uniform(0.5, 1.0) * min(photo.width / width, photo.height / height)
        left = random.uniform(0, photo.width - scale * width)
        top = random.uniform(0, photo.height - scale * height)
        box = (left, top, left + scale * width, top + scale * height)
        crop = photo.resize((width, height), Image.Resampling.BICUBIC, box)
        file = io.BytesIO()
        crop.save(file, "JPEG", quality=QUALITY)
        for copy in range(COPIES):
            (folder / f"{copy:02d}-{index:04d}.jpg").write_bytes(file.getvalue())


def pillow(paths: list[Path], image_size: int) -> None:
    """Decode files and bring them to their size; nothing is kept."""
    for path in paths:
        square_pixels(path.read_bytes(), image_size, 3)


def bare(paths: list[Path], image_size: int) -> None:
    """The least that Pillow can do: no formats but JPEG's, no rotation, no transparency."""
    for path in paths:
        image = Image.open(io.BytesIO(path.read_bytes()), formats=("JPEG",)).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        np.asarray(square.resize((image_size, image_size), Image.Resampling.LANCZOS))


def prepare_rates(one_core: bool) -> pd.DataFrame:
    """Images a second of `prepare` and of Pillow alone, all in turn.

    On all cores by the clock; or on one by its time, which does not depend on what else the machine does.
    """
    cores = os.sched_getaffinity(0)
    if one_core:
        os.sched_setaffinity(0, {min(cores)})  # then `prepare` starts no other processes
    rows = []
    for name, (width, height, image_size, count) in FOLDERS.items():
        with TemporaryDirectory() as folder, ProcessPoolExecutor(count_cores()) as pool:
            raw, out = Path(folder) / "raw" / "image_folder", Path(folder) / "prepared"
            raw.mkdir(parents=True)
            photographs(raw, width, height, count)
            paths = sorted(raw.iterdir())
            data = Data(name="image_folder", root=None, image_size=image_size, channels=3, holdout=1, train_images=None)
            alone = partial(_alone, None if one_core else pool)
            cases: dict[str, Callable[[], object]] = {
                ALONE: partial(alone, bare, paths, image_size),
                "Pillow, every format": partial(alone, pillow, paths, image_size),
                "prepare": partial(prepare, data, out, raw.parent),
            }
            seconds = _in_turn(cases, process_time if one_core else perf_counter)
            rows += [
                {
                    "files": name,
                    "case": case,
                    "images/s": f"{len(paths) / median(taken):,.0f}",
                    f"of {ALONE}": f"{median(np.array(seconds[ALONE]) / taken):.2f}",
                }
                for case, taken in seconds.items()
            ]
    return pd.DataFrame(rows)


def _alone(pool: ProcessPoolExecutor | None, work: Work, paths: list[Path], image_size: int) -> None:
    """All files, in this process or in those of `pool`."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    list((pool.map if pool else map)(work, chunks, [image_size] * len(chunks)))


def _in_turn(cases: dict[str, Callable[[], object]], now: Callable[[], float]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(ROUNDS + 1):
        for name, work in cases.items():
            started = now()
            work()
            if number:  # the first round warms up
                seconds[name].append(now() - started)
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one-core", action="store_true", help="by the time of one core: for a busy machine")
    print(prepare_rates(parser.parse_args().one_core).to_markdown(index=False))
    print(f"\n{count_cores()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
