"""What the search's page says of runs with known curves."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from maskdm.reporting.search_page import arms_table, confirmation, verdict
from maskdm.tracking.records import Record

FACTORS = {"trial3": 0.9, "paper": 1.2, "scratch": 1.0}  # of the loss at every compute
NOISE = {101: 1.0, 102: 1.05}  # of a seed, in all arms alike
TRIALS = pd.DataFrame({"trial": [3], "masks": ["3x3 crop"], "state": ["complete"], "heldout_loss": [0.9]})


def run(arm: str, seed: int) -> tuple[Record, None]:
    """Its loss is 1 / compute, times the arm's factor and the seed's noise."""
    level = FACTORS[arm] * NOISE[seed]
    history = [{"train_flops": 1e12 * s, "heldout_loss": level / s} for s in np.linspace(0.1, 1, 10)]
    judged = {"fd_effnet_lite0": 100 * level, "kid": 0.1}
    masked = {"mask.strategy": "block -> none", "mask.size": "2 -> 0", "mask.ratio": "0.9 -> 0.0"}
    dense = {"mask.strategy": "none", "mask.size": 0, "mask.ratio": 0.0}
    params = {"seed": seed, **(masked if arm == "paper" else dense)}
    summary = {"train_flops": 1e12, "heldout_loss": level, **judged}
    record = Record("search", f"confirm/{arm}-seed{seed}", arm, "x", params, {}, summary, [*history, judged])
    return record, None


@pytest.fixture
def confirmed() -> pd.DataFrame:
    return confirmation(TRIALS, [run(arm, seed) for arm, seed in product(FACTORS, NOISE)])


def test_a_run_is_held_against_scratch_of_its_own_seed(confirmed: pd.DataFrame) -> None:
    assert confirmed["arm"].tolist() == ["trial3", "trial3", "paper", "paper", "scratch", "scratch"]
    # Between 0.8 and 0.9 of the compute its loss falls log-linearly from 0.9 / 0.8 to 0.9 / 0.9 = 1, the target.
    assert confirmed["compute_to_target"].to_numpy() == pytest.approx([0.9, 0.9, math.inf, math.inf, 1, 1])


def test_the_table_says_with_how_many_seeds_the_loss_is_reached(confirmed: pd.DataFrame) -> None:
    table = arms_table(confirmed)
    assert table["masks"].tolist() == ["3x3 crop", "2x2 blocks, 90 %", "-"]
    assert table["compute to scratch's loss"].tolist() == ["90 %", "0 of 2 seeds", "100 %"]
    once = confirmed.assign(compute_to_target=[0.8, 0.9, 0.7, math.inf, 1, 1])
    assert arms_table(once)["compute to scratch's loss"].tolist() == ["85 % (80 % to 90 %)", "1 of 2 seeds", "100 %"]


def test_the_verdict_counts_seeds_and_not_means_alone(confirmed: pd.DataFrame) -> None:
    said = verdict(confirmed)
    assert "`trial3` against that of training from scratch: -10.0 % (-10.0 to -10.0 %), lower with 2 of 2 seeds" in said
    assert "`trial3` against that of the paper's default: -25.0 % (-25.0 to -25.0 %), lower with 2 of 2 seeds" in said
