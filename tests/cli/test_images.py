"""`train`, `sample`, `interpolate` and `evaluate` on a toy project."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdm.tracking.records import read_record_at, read_records
from tests.cli.conftest import Run
from tests.workspace import write_params


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_an_arm_is_drawn_as_grid_singles_and_animation_from_any_folder(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project / "profiles")
    assert run("sample", "scratch", "--count", 10, "--steps", 6, "--json") == 0
    out = project / "profiles" / "samples" / "scratch-seed0"
    files = json.loads(capsys.readouterr().out)
    assert files == sorted(str(path) for path in out.rglob("*.*"))
    assert len(list((out / "images").iterdir())) == 10
    with Image.open(out / "denoising.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 7  # the noise, and what each step makes of it
    assert pixels(out / "grid.png").shape == (2 * 64, 8 * 64)


def test_a_seed_means_the_same_images_whatever_the_name_of_the_weights_and_the_count(project: Path, run: Run) -> None:
    sources = {"arm": "scratch/0", "run": "runs/train/scratch/0", "weights": "./runs/train/scratch/0/weights"}
    for name, source in sources.items():
        assert run("sample", source, "--count", 3 if name == "arm" else 1, "--out", name, "--animation", "none") == 0
    assert run("sample", "scratch", "--count", 1, "--out", "other", "--seed", 1) == 0
    first = {name: pixels(project / name / "images" / "00000.png") for name in (*sources, "other")}
    assert np.array_equal(first["arm"], first["run"])
    assert np.array_equal(first["arm"], first["weights"])
    assert not np.array_equal(first["arm"], first["other"])


def test_weights_are_drawn_as_they_were_trained_whatever_the_settings_say_now(
    project: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sample", "scratch", "--count", 2, "--out", "before") == 0
    write_params(project, recipe="epsilon")
    assert run("sample", "scratch", "--count", 2, "--out", "after") == 0
    for name in ("00000.png", "00001.png"):
        assert np.array_equal(pixels(project / "before/images" / name), pixels(project / "after/images" / name))
    capsys.readouterr()
    assert run("sample", "scratch", "--recipe", "epsilon", "--out", "wrong") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--recipe epsilon: it predicts epsilon, " in error
    assert "was trained with v_prediction, " in error
    assert not (project / "wrong").exists()


def test_weights_that_say_nothing_are_drawn_with_the_recipe_that_is_named(project: Path, run: Run) -> None:
    assert run("sample", "scratch", "--count", 1, "--out", "said") == 0
    (project / "runs/train/scratch/0/weights/objective.json").unlink()  # as in imported weights
    for name, recipe in (("same", "v"), ("other", "epsilon")):
        assert run("sample", "scratch", "--count", 1, "--recipe", recipe, "--out", name) == 0
    drawn = {name: pixels(project / name / "images/00000.png") for name in ("said", "same", "other")}
    assert np.array_equal(drawn["said"], drawn["same"])
    assert not np.array_equal(drawn["said"], drawn["other"])


def test_an_interpolation_begins_and_ends_with_the_images_of_its_seeds(project: Path, run: Run) -> None:
    assert run("interpolate", "scratch", "--seeds", 3, 5, "--count", 4, "--out", "way", "--animation", "webp") == 0
    for seed, place in ((3, "00000.png"), (5, "00003.png")):
        assert run("sample", "scratch", "--count", 1, "--seed", seed, "--out", f"seed{seed}") == 0
        found = pixels(project / "way" / "images" / place).astype(int)
        assert np.abs(found - pixels(project / f"seed{seed}" / "images" / "00000.png")).max() <= 1  # rounding
    assert (project / "way" / "interpolation.webp").is_file()


def test_weights_against_the_reference_get_what_their_record_says(
    project: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", "scratch", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    record = read_record_at(project / "runs" / "train" / "scratch" / "0" / "record.json")
    for name, value in found["metrics"].items():
        assert value == pytest.approx(record.summary[name], rel=1e-4, abs=1e-6)
    floor = json.loads((project / "records" / "reference.json").read_text())["floor"]
    assert found["floor"] == pytest.approx(floor, rel=1e-4, abs=1e-6)


def test_a_folder_of_real_images_is_as_near_as_its_halves_and_noise_is_farther(
    project: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.load(project / "data" / "prepared" / "images.npy")[:64, 0]
    noise = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    for name, content in (("real", images[:32]), ("same", images[32:]), ("noise", noise)):
        (project / name).mkdir()
        for number, image in enumerate(content):
            Image.fromarray(image).save(project / name / f"{number}.png")
    found = {}
    for name in ("real", "noise"):
        assert run("evaluate", name, "same", "--json") == 0
        found[name] = json.loads(capsys.readouterr().out)
    metric = "fd_effnet_lite0"
    assert found["real"]["metrics"][metric] < 2 * found["real"]["floor"][metric] < found["noise"]["metrics"][metric]
    assert run("evaluate", "scratch", "same", "--count", 8) == 0
    assert "8 images against 32 real ones; the floor: 16 real images against 16 others" in capsys.readouterr().out


def test_an_arm_is_trained_once_and_recorded_nowhere(
    project: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not read_records(project)
    record = project / "runs" / "train" / "scratch" / "0" / "record.json"
    before = record.stat().st_mtime_ns
    assert run("train", "scratch", "--judge", "--json") == 0
    assert json.loads(capsys.readouterr().out)["heldout_loss"] == read_record_at(record).summary["heldout_loss"]
    assert record.stat().st_mtime_ns == before, "it was done"
    assert run("train", "staged", "--seed", 4) == 0
    assert read_record_at(project / "runs" / "train" / "staged" / "4" / "record.json").params["seed"] == 4
    assert not list((project / "work").rglob("state")), "nothing is left to resume"
