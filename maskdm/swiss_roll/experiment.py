"""Both arms of the Swiss roll with every seed, their distances, and the panels of the figure.

The samples of an arm are kept in the work folder as soon as they are drawn and stay there, so that a kill costs one
training at most and an edit of the figures none.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from maskdm.reporting.analysis import FLOOR
from maskdm.runtime.files import reading, write_atomically
from maskdm.runtime.progress import bar_interval
from maskdm.runtime.seeding import generator
from maskdm.swiss_roll import figures as swiss_roll_figures
from maskdm.swiss_roll.data import SwissRoll, draw_points, even_points, sliced_wasserstein
from maskdm.swiss_roll.figures import Panel
from maskdm.swiss_roll.training import (
    ALONE,
    Arm,
    Samples,
    pretrain_flops,
    step_flops,
    steps_at_equal_compute,
    train_arm,
)

TRUE_POINTS = 5_000  # evenly spaced, so that they add no chance of their own to a distance

Row = tuple[str, int, int | None, float | None, float]  # arm, seed, step, train_flops, sliced_wasserstein
Runs = dict[tuple[Arm, int], Samples]  # of each arm and seed


def kept(work: Path, settings: SwissRoll, arm: Arm, seed: int) -> Samples:
    """The samples of one arm and seed, from `work` if an earlier run left them there."""
    path = work / f"{arm}-{seed}.npz"
    if not path.is_file():
        last = settings.finetune_steps[-1]
        steps = settings.pretrain_steps + last if arm == "pretrained" else steps_at_equal_compute(settings)[-1]
        bar = tqdm(total=steps, desc=f"{arm}, seed {seed}", unit="step", mininterval=bar_interval())
        with bar:
            samples = train_arm(settings, arm, seed, bar.update)
        write_atomically(path, lambda file: np.savez(file, **samples))  # type: ignore[arg-type]  # numpy's own stub errs
    with reading(path, "delete it, and the same command trains it again"), np.load(path) as file:
        return dict(file)


def measure(settings: SwissRoll, runs: Runs) -> pd.DataFrame:
    """The distance of every look at every seed, and the floor: that of as many true points."""
    true = even_points(TRUE_POINTS).numpy()
    start, step_cost = pretrain_flops(settings), step_flops(settings, None)
    rows: list[Row] = []
    for (arm, seed), samples in runs.items():
        before = start if arm == "pretrained" else 0.0
        for name, points in samples.items():
            step = 0 if name == ALONE else int(name)
            distance = sliced_wasserstein(points, true)
            rows.append((ALONE if name == ALONE else arm, seed, step, before + step * step_cost, distance))
    for seed in range(settings.seeds):
        points = draw_points(settings.samples, generator("cpu", seed, "floor")).numpy()
        rows.append((FLOOR, seed, None, None, sliced_wasserstein(points, true)))
    columns = ["arm", "seed", "step", "train_flops", "sliced_wasserstein"]
    return pd.DataFrame(rows, columns=columns).astype({"step": "Int64"})


def draw_samples(settings: SwissRoll, runs: Runs, measured: pd.DataFrame) -> Figure:
    """The figure of the first seed's samples: the two arms at equal steps, and scratch again at equal compute."""
    first = measured[measured["seed"] == 0].set_index(["arm", "step"])["sliced_wasserstein"]

    def panel(arm: Arm, step: int) -> Panel:
        return Panel(f"step {step}", runs[arm, 0][str(step)], first[arm, step])

    alone = Panel("x and y apart", runs["pretrained", 0][ALONE], first[ALONE, 0])
    steps, matched = settings.finetune_steps, steps_at_equal_compute(settings)
    rows: dict[str, list[Panel | None]] = {
        "pre-trained": [alone, *(panel("pretrained", step) for step in steps)],
        "scratch,\nsame steps": [None, *(panel("scratch", step) for step in steps)],
        "scratch,\nsame compute": [None, *(panel("scratch", step) for step in matched)],
    }
    return swiss_roll_figures.samples(rows, even_points(500).numpy(), float(first[FLOOR].iloc[0]))
