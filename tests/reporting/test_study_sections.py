"""The sections of the study's page beside its comparisons."""

import re

import pandas as pd

from maskdm.config.params import Params
from maskdm.reporting.study_sections import advice_answer, agreement_answer, swiss_roll_answer, throughput_answer
from tests.comparison import analysed, settings


def test_the_page_names_the_parts_whose_seeds_agree() -> None:
    params = Params.model_validate(settings() | {"seeds": [1, 2, 3]})
    table = analysed(params).trials.loc[lambda trials: trials["arm"].isin(["scratch", "patch90", "crop3"])]
    torn = table.assign(heldout_loss=[1, 2, 3, 2, 3, 1, 3, 1, 2])  # every arm is once the first, the second, the third
    answer = agreement_answer({"sure": params, "torn": params}, {"sure": table, "torn": torn})
    assert answer.in_short.endswith("more alike than chance (p < 0.05) in `sure`; not in `torn`.")
    assert re.search(r"sure +\| +36 TFLOPs +\| +5 +\| +3 +\| +W = 1.00 \(p = 0.0\d\d\)", answer.section)
    assert "W = 0.00 (p = 1.000)" in answer.section
    alone = agreement_answer({"alone": params}, {"alone": table[table["seed"] == 1]})
    assert alone.in_short.endswith("in no part; not in any other. With one seed it is not known: `alone`.")


def test_the_swiss_rolls_looks_are_compared_at_equal_steps_and_at_equal_compute() -> None:
    rows = [
        ("pretrained", 10, 15.0, 0.2),
        ("pretrained", 20, 25.0, 0.1),
        ("scratch", 10, 10.0, 0.8),
        ("scratch", 15, 15.1, 0.5),
        ("scratch", 20, 20.0, 0.4),
        ("scratch", 25, 25.1, 0.2),
        ("real vs real", None, None, 0.01),
    ]
    measured = pd.DataFrame(rows, columns=["arm", "step", "train_flops", "sliced_wasserstein"]).assign(seed=0)
    text = swiss_roll_answer(measured.astype({"step": "Int64"})).section
    assert "25 % of scratch's at equal steps, and 50 % at equal compute" in text
    assert re.search(r"10 +\| +0.200 .*\| +0.800 .*\| +0.500 ", text)


def test_throughput_is_said_of_masked_steps_against_dense_ones() -> None:
    columns = ["arm", "effective_mask_ratio", "batch_size", "images_per_second", "tokens_per_second", "of_flop_ideal"]
    rows = [
        ("scratch", 0.0, 32, 100.0, 6400.0, 1.04),
        ("a", 0.5, 64, 200.0, 6400.0, 0.9),
        ("b", 0.9, 256, 800.0, 5e3, 1.0),
    ]
    answer = throughput_answer(pd.DataFrame(rows, columns=columns).assign(memory_bytes=[1e8, 1.1e8, 8e7]))
    assert (
        "Masked steps reach 90 % to 100 % of the images/s that their FLOPs promise, in 80 % to 110 %" in answer.in_short
    )


def test_advice_is_said_beside_what_the_seeds_say_of_each_other() -> None:
    row = {"masks": 11, "by_saving": 0.671, "by_context": 0.5, "at_equal_ratio": 0.8, "pairs": 15, "of_halves": 0.63}
    said = advice_answer(pd.DataFrame([row]))
    assert (
        "of 11 masks has a rank correlation of +0.67 with their losses. The two halves of the seeds have +0.63"
        in said.in_short
    )
    assert (
        "Of 15 pairs of masks that remove about as much, the one that loses less context ends lower in 80 %."
        in said.section
    )
