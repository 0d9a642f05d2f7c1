"""The Swiss roll: its points, the distance to them, its training, and the stage through its real entry point."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from sklearn.datasets import make_swiss_roll

from maskdm.config.reading import load_block
from maskdm.reporting.analysis import FLOOR
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.seeding import generator
from maskdm.swiss_roll.data import ANGLES, SwissRoll, draw_points, even_points, load_settings, sliced_wasserstein
from maskdm.swiss_roll.training import (
    ALONE,
    ONE_OF_TWO,
    alone,
    new_network,
    pretrain_flops,
    step_flops,
    steps_at_equal_compute,
    train_arm,
)
from tests.imports import PROJECT
from tests.workspace import ENVIRONMENT, make_workspace

TOY: dict[str, Any] = {
    "seeds": 2,
    "embed_dim": 8,
    "depth": 1,
    "num_heads": 2,
    "recipe": {
        "objective": {
            "name": "ddpm",
            "num_train_timesteps": 100,
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": "v_prediction",
        },
        "optimisation": {
            "optimizer": "muon",
            "lr": 1e-2,
            "betas": [0.9, 0.99],
            "weight_decay": 0.0,
            "grad_clip": None,
            "warmup": 0.1,
            "ema_horizon": 0.1,
        },
    },
    "batch_size": 16,
    "pretrain_steps": 4,
    "finetune_steps": [0, 2, 5],
    "samples": 40,
    "sampling": {"sampler": "dpm_solver", "num_inference_steps": 3, "eta": 0.0, "batch_size": 25},
}


@pytest.fixture
def toy() -> SwissRoll:
    return SwissRoll.model_validate(TOY)


# --- the distribution and the distance ----------------------------------------------------------------------


def test_drawn_points_lie_on_the_curve_in_the_unit_disc() -> None:
    points = draw_points(500, generator("cpu", 0)).numpy()
    radius, direction = np.hypot(*points.T), np.arctan2(*points.T[::-1])
    angle = radius * ANGLES[1]
    assert angle.min() >= ANGLES[0] - 1e-5
    assert radius.max() <= 1 + 1e-6
    assert np.exp(1j * angle) == pytest.approx(np.exp(1j * direction), abs=1e-4)


def test_it_is_scikit_learns_roll_seen_along_its_axis() -> None:
    theirs = make_swiss_roll(20_000, random_state=0)[0][:, [0, 2]] / ANGLES[1]
    assert sliced_wasserstein(theirs, even_points(20_000).numpy()) < 0.01


def test_the_distance_of_a_set_to_itself_is_0_in_any_order() -> None:
    points = draw_points(100, generator("cpu", 0)).numpy()
    assert sliced_wasserstein(points, points[::-1]) == 0


def test_the_distance_of_a_shifted_set_is_the_mean_shift_along_all_lines() -> None:
    points = draw_points(100, generator("cpu", 0)).numpy()
    # A shift by s moves a projection by s |cos|, whose mean over all directions is 2 s / pi.
    for shift in ([0.3, 0.0], [0.0, -0.3], [0.18, 0.24]):
        assert sliced_wasserstein(points, points + shift) == pytest.approx(2 * 0.3 / np.pi, rel=2e-3)


def test_sets_may_differ_in_number() -> None:
    assert sliced_wasserstein(np.zeros((3, 2)), np.array([[1.0, 0.0]])) == pytest.approx(2 / np.pi, rel=2e-3)


# --- training -----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_samples_and_another_seed_others(toy: SwissRoll) -> None:
    first, again, other = (train_arm(toy, "pretrained", seed, lambda: None) for seed in (3, 3, 4))
    assert list(first) == [ALONE, "0", "2", "5"]
    for name, points in first.items():
        assert points.shape == (40, 2)
        assert (points == again[name]).all()
        assert (points != other[name]).any()


def test_equal_compute_is_counted_in_whole_steps_of_scratch(toy: SwissRoll) -> None:
    pair = step_flops(toy, None)
    assert step_flops(toy, ONE_OF_TWO) < pair
    for step, matched in zip(toy.finetune_steps, steps_at_equal_compute(toy), strict=True):
        assert matched * pair == pytest.approx(pretrain_flops(toy) + step * pair, abs=pair / 2)


def test_scratch_trains_to_a_look_as_if_it_were_its_last(toy: SwissRoll) -> None:
    """Its looks at equal compute come later than the other arm ends, and may not change those before."""
    longer = toy.model_copy(update={"pretrain_steps": 40})
    short, long = (train_arm(settings, "scratch", 0, lambda: None) for settings in (toy, longer))
    assert all((short[step] == long[step]).all() for step in ("0", "2", "5"))
    assert max(map(int, long)) > max(map(int, short))


def test_drawn_apart_a_coordinate_knows_nothing_of_the_other(toy: SwissRoll) -> None:
    network = alone(new_network(toy, seed=0))
    x_t, t = torch.randn(4, 2, 1), torch.tensor([1, 5, 20, 90])
    changed = x_t.clone()
    changed[:, 1] += 1
    before, after = network(x_t, t), network(changed, t)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


# --- settings -----------------------------------------------------------------------------------------------


def write_settings(folder: Path, **changes: Any) -> Path:
    path = folder / "study" / "params.yaml"
    path.parent.mkdir(exist_ok=True)
    content = {"another_study": {"unknown": 1}, "swiss_roll": json.loads(json.dumps(TOY)) | changes}
    with path.open("w") as file:
        YAML(typ="safe").dump(content, file)
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sedes": 1}, "swiss_roll.sedes is not a known key; did you mean seeds?"),
        ({"seeds": 0}, "swiss_roll.seeds=0: input should be greater than 0"),
        ({"finetune_steps": [5, 2]}, "swiss_roll: finetune_steps=[5, 2]; allowed: two or more ascending steps"),
        ({"num_heads": 3}, "swiss_roll: embed_dim=8; allowed: an even multiple of num_heads=3"),
        ({"depth": 2}, "swiss_roll: depth=2; allowed: an odd number"),
        (
            {"sampling": TOY["sampling"] | {"guidance_scale": 2.0}},
            "swiss_roll: sampling.guidance_scale=2; allowed: 1, there are no classes",
        ),
        (
            {"sampling": TOY["sampling"] | {"sampler": "euler"}},
            "swiss_roll: sampling.sampler=euler with objective=ddpm; allowed: ddpm, ddim, dpm_solver, unipc",
        ),
        (
            {"recipe": TOY["recipe"] | {"optimisation": TOY["recipe"]["optimisation"] | {"decay": 0.3}}},
            "swiss_roll.recipe.optimisation.decay is not a known key",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = write_settings(tmp_path, **changes)
    with pytest.raises(MaskDMError) as error:
        load_settings(path)
    assert str(error.value).startswith(f"{path}: {says}")
    assert "\n" not in str(error.value)


def test_a_missing_block_is_named(tmp_path: Path) -> None:
    with pytest.raises(MaskDMError, match="another is missing"):
        load_block(SwissRoll, "another", write_settings(tmp_path))


def test_the_projects_own_settings_are_valid() -> None:
    assert load_settings(PROJECT / "study" / "params.yaml").finetune_steps[0] == 0


# --- the stage ----------------------------------------------------------------------------------------------


def run_stage(folder: Path, expect: int = 0) -> str:
    command = [sys.executable, "-m", "pipeline.swiss_roll"]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, text=True, capture_output=True, timeout=100)
    assert done.returncode == expect, done.stderr
    return done.stderr


def test_the_stage_writes_its_reports_and_trains_nothing_twice(tmp_path: Path) -> None:
    make_workspace(tmp_path, "smoke")
    write_settings(tmp_path)
    assert "pretrained, seed 1: 100%" in run_stage(tmp_path)
    reports = {path.name: path.read_bytes() for path in (tmp_path / "reports" / "study").iterdir()}
    assert {Path(name).suffix for name in reports} == {".csv", ".png"}
    assert len(reports) == 3

    measured = pd.read_csv(tmp_path / "reports" / "study" / "swiss_roll.csv")
    assert list(measured) == ["arm", "seed", "step", "train_flops", "sliced_wasserstein"]
    assert measured.groupby("arm").size().to_dict() == {"pretrained": 6, "scratch": 10, ALONE: 2, FLOOR: 2}
    assert set(measured["seed"]) == {0, 1}

    (kept,) = (tmp_path / "work" / "swiss_roll").glob("*/scratch-1.npz")
    kept.unlink()
    assert run_stage(tmp_path).count("100%") == 1  # the missing one, and nothing anew
    assert {path.name: path.read_bytes() for path in (tmp_path / "reports" / "study").iterdir()} == reports

    write_settings(tmp_path, sead=1)
    assert run_stage(tmp_path, expect=2) == (
        "error: study/params.yaml: swiss_roll.sead is not a known key; did you mean seed?\n"
    )
