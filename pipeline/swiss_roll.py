"""DVC stage `swiss_roll` of `study/dvc.yaml`: the paper's Figure 1, and the same comparison at equal compute."""

from typing import get_args

import torch

from maskdm.numerics import NUMERICS
from maskdm.reporting import figures
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.files import write_csv
from maskdm.runtime.paths import ROOT, STUDY, STUDY_REPORTS
from maskdm.swiss_roll import figures as swiss_roll_figures
from maskdm.swiss_roll.data import load_settings
from maskdm.swiss_roll.experiment import draw_samples, kept, measure
from maskdm.swiss_roll.training import (
    Arm,
    Samples,
)
from maskdm.training.checkpoint import fingerprint

ARMS: tuple[Arm, ...] = get_args(Arm)

Runs = dict[tuple[Arm, int], Samples]  # of each arm and seed


def main() -> None:
    """Write `reports/study/swiss_roll*`."""
    with exit_with_one_line():
        torch.set_num_threads(1)  # so small a network is no faster with more
        settings = load_settings(STUDY)
        work = ROOT / "work" / "swiss_roll" / fingerprint(NUMERICS, settings.flat())
        runs: Runs = {(arm, seed): kept(work, settings, arm, seed) for seed in range(settings.seeds) for arm in ARMS}
        measured = measure(settings, runs)
        with figures.style():
            drawn = {
                "swiss_roll": draw_samples(settings, runs, measured),
                "swiss_roll_distance": swiss_roll_figures.distances(
                    measured, settings.finetune_steps, figures.arm_colors(list(ARMS), "scratch")
                ),
            }
        for name, figure in drawn.items():
            figures.save(figure, STUDY_REPORTS / name)
        write_csv(STUDY_REPORTS / "swiss_roll.csv", measured)


if __name__ == "__main__":
    main()
