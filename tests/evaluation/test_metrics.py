"""Distances between features, the reference, the floor, and the stage that writes them."""

import json
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as clean_frechet_distance
from cleanfid.fid import kernel_distance as clean_kernel_distance
from prdc import compute_prdc
from ruamel.yaml import YAML
from sklearn.neighbors import NearestNeighbors
from torch_fidelity.metric_prc import prc_features_to_metric

from maskdm.config.params import Evaluation
from maskdm.evaluation import metrics
from maskdm.evaluation.extractors import Extractor, extract, load_extractor
from maskdm.evaluation.metrics import (
    Reference,
    ReferenceKey,
    build_reference,
    compare,
    fidelity_and_diversity,
    floor,
    floor_counts,
    floor_images,
    frechet_distance,
    kid,
    load_reference,
    neighbour_radii,
    statistics,
)
from maskdm.runtime.errors import MaskDMError
from pipeline import reference as stage
from tests.imports import PROJECT


def evaluation(**changes: Any) -> Evaluation:
    settings = {
        "extractor": "effnet_lite0",
        "input_size": 32,
        "weights": None,
        "batch_size": 16,
        "samples": 30,
        "reference": 50,
        "kid_subsets": 10,
        "kid_subset_size": 20,
        "nearest_k": 3,
    }
    return Evaluation.model_validate(settings | changes)


def gaussian(count: int, dimensions: int = 12, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimensions, dimensions)) / np.sqrt(dimensions)
    features: np.ndarray = generator.normal(size=(count, dimensions)) @ mixing + shift
    return features.astype(np.float32)


def global_generators() -> bytes:
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))


def reference_of(features: np.ndarray) -> Reference:
    return Reference.of(ReferenceKey("d" * 64, "effnet_lite0", "e" * 64, 32, len(features), nearest_k=3), features)


# --- Fréchet distance -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The `disp` argument")  # of clean-fid's
def test_frechet_distance_agrees_with_clean_fid() -> None:
    first, second = statistics(gaussian(300)), statistics(gaussian(200, shift=0.5, seed=1))
    assert frechet_distance(first, second) == pytest.approx(clean_frechet_distance(*first, *second), rel=1e-9)


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form() -> None:
    generator = np.random.default_rng(0)
    means, deviations = generator.normal(size=(2, 8)), generator.uniform(0.5, 2, size=(2, 8))
    closed_form = np.sum((means[0] - means[1]) ** 2) + np.sum((deviations[0] - deviations[1]) ** 2)
    gaussians = [(mean, np.diag(deviation**2)) for mean, deviation in zip(means, deviations, strict=True)]
    assert frechet_distance(gaussians[0], gaussians[1]) == pytest.approx(closed_form, rel=1e-12)


def test_frechet_distance_of_a_set_to_itself_is_zero() -> None:
    same = statistics(gaussian(100))
    assert 0 <= frechet_distance(same, same) < 1e-6


def test_fewer_samples_than_dimensions_give_a_finite_symmetric_distance() -> None:
    few, many = statistics(gaussian(20, dimensions=100)), statistics(gaussian(500, dimensions=100, shift=1, seed=1))
    assert np.linalg.matrix_rank(few[1]) < 100
    distance = frechet_distance(few, many)
    assert np.isfinite(distance)
    assert distance > 0
    assert frechet_distance(many, few) == pytest.approx(distance, rel=1e-6)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-3)


def test_statistics_are_taken_in_float64() -> None:
    features = gaussian(50) + 1000  # float32 sums lose digits here
    mean, covariance = statistics(features)
    exact = features.astype(np.float64)
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(exact, rowvar=False), rtol=1e-12)


# --- KID --------------------------------------------------------------------------------------------------


def test_kid_is_near_zero_for_one_distribution_and_grows_with_the_shift() -> None:
    real = gaussian(400)
    distances = [kid(gaussian(400, shift=shift, seed=1), real, 20, 100, seed=0) for shift in (0, 0.5, 1, 2)]
    assert abs(distances[0]) < 0.1 * distances[1]
    assert distances == sorted(distances)


def test_kid_of_whole_sets_agrees_with_clean_fid() -> None:
    samples, real = gaussian(60, shift=0.5, seed=1).astype(np.float64), gaussian(60).astype(np.float64)
    expected = clean_kernel_distance(real, samples, num_subsets=1, max_subset_size=60)
    assert kid(samples, real, 1, 60, seed=0) == pytest.approx(expected, rel=1e-9)


def test_kid_of_float32_features_is_that_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, real = gaussian(200, dimensions=1000, shift=0.1, seed=1), gaussian(300, dimensions=1000)
    exact = kid(samples.astype(np.float64), real.astype(np.float64), 20, 100, seed=0)
    assert kid(samples, real, 20, 100, seed=0) == pytest.approx(exact, abs=1e-6)
    assert abs(exact) > 1e-3


# --- precision, recall, density and coverage --------------------------------------------------------------


def lie(samples: np.ndarray, real: np.ndarray, nearest_k: int = 3) -> dict[str, float]:
    """How samples lie among real images."""
    own, reference = ((features, neighbour_radii(features, nearest_k)) for features in (samples, real))
    return fidelity_and_diversity(own, reference, nearest_k)


def within(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Whether each point is in the ball of each centre, bool [points, centres]."""
    radii = NearestNeighbors(n_neighbors=4).fit(centres).kneighbors(centres)[0][:, -1]  # itself and 3 more
    inside: np.ndarray = np.linalg.norm(points[:, None] - centres[None], axis=2) < radii
    return inside


def test_a_set_lies_among_itself_as_it_should() -> None:
    found = lie(gaussian(80), gaussian(80))
    density, nearest = found.pop("density"), found.pop("nearest")
    assert found == {"precision": 1, "recall": 1, "coverage": 1}
    assert nearest == pytest.approx(0, abs=1e-6)
    assert density == pytest.approx(1, abs=0.05)  # rounding takes a few third neighbours in from the edge


def test_sets_far_apart_have_nothing_in_common() -> None:
    found = lie(gaussian(80), gaussian(80, shift=1000, seed=1))
    assert found.pop("nearest") > 100
    assert found == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_one_mode_of_two_has_fidelity_but_half_the_diversity() -> None:
    left, right = gaussian(100), gaussian(100, shift=1000, seed=1)
    found = lie(left, np.concatenate([left, right]))
    assert found["precision"] == 1
    assert found["density"] == pytest.approx(1, abs=0.05)
    assert found["recall"] == found["coverage"] == pytest.approx(0.5)


def test_samples_that_crowd_where_real_images_are_dense_have_a_density_above_one() -> None:
    real = gaussian(300)
    crowd = np.repeat(real.mean(axis=0, keepdims=True), 50, axis=0) + 1e-3 * gaussian(50, seed=1)
    found = lie(crowd, real)
    assert found["density"] > 2
    assert found["coverage"] < 0.2


@pytest.mark.parametrize(("samples", "real"), [(600, 600), (200, 1000), (1000, 200)])
def test_of_one_distribution_density_is_about_one_and_coverage_what_the_counts_allow(samples: int, real: int) -> None:
    found = lie(gaussian(samples, seed=1), gaussian(real))
    assert found["density"] == pytest.approx(1, abs=0.1)
    all_three_nearest_are_real = (real / (samples + real)) ** 3
    assert found["coverage"] == pytest.approx(1 - all_three_nearest_are_real, abs=0.05)


def test_copies_of_real_images_are_told_from_others_of_the_same_kind() -> None:
    real, others = gaussian(300), gaussian(300, seed=1)
    half = np.concatenate([real[:150], others[:150]])
    assert 0.8 < lie(others, real)["nearest"] < 1.2
    assert lie(half, real)["nearest"] == pytest.approx(lie(others[:150], real)["nearest"] / 2)
    assert lie(real[:50] + 1e-3, real)["nearest"] < 0.01
    assert lie(others, np.repeat(real[:1], 10, axis=0))["nearest"] > 1e10, "real images that are all alike"


def test_one_stray_sample_makes_recall_and_not_coverage() -> None:
    """Its ball holds all that is as near to it as the samples are: why Naeem et al. measure near by real images."""
    real, samples = gaussian(200, shift=20), gaussian(100, seed=1)
    stray = np.concatenate([samples, gaussian(1, shift=12, seed=2)])
    assert lie(samples, real)["recall"] == 0
    assert lie(stray, real)["recall"] == 1
    assert lie(stray, real)["coverage"] == 0


def test_they_agree_with_nearest_neighbours() -> None:
    samples, real = gaussian(70, shift=0.7, seed=1).astype(np.float64), gaussian(90).astype(np.float64)
    inside, nearest = within(samples, real), NearestNeighbors().fit(real)
    expected = {
        "precision": inside.any(axis=1).mean(),
        "recall": within(real, samples).any(axis=1).mean(),
        "density": inside.sum() / (3 * 70),
        "coverage": inside.any(axis=0).mean(),
        "nearest": nearest.kneighbors(samples, 1)[0].mean() / nearest.kneighbors(real, 4)[0][:, -1].mean(),
    }
    assert 0 < expected["precision"] < 1
    assert lie(samples, real) == pytest.approx(expected, abs=1e-12)


def test_precision_and_recall_are_torch_fidelitys_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 100)
    samples, real = gaussian(230, shift=0.7, seed=1), gaussian(350)
    expected = prc_features_to_metric(
        torch.from_numpy(samples).double(), torch.from_numpy(real).double(), prc_neighborhood=3, verbose=False
    )
    found = lie(samples, real)
    precision, recall = found["precision"], found["recall"]
    assert 0.05 < precision < recall < 0.95 or 0.05 < recall < precision < 0.95
    assert precision == pytest.approx(expected["precision"], abs=1e-6)  # torch-fidelity averages in float32
    assert recall == pytest.approx(expected["recall"], abs=1e-6)


@pytest.mark.parametrize("nearest_k", [1, 3, 5])
def test_they_are_those_of_the_authors_over_several_blocks(nearest_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 100)
    samples, real = gaussian(230, shift=0.5, seed=1), gaussian(350)
    expected = compute_prdc(real.astype(np.float64), samples.astype(np.float64), nearest_k)
    assert all(0.05 < value < 0.95 for value in expected.values())
    found = lie(samples, real, nearest_k)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


# --- all of them ------------------------------------------------------------------------------------------


def test_metrics_repeat_and_neither_read_nor_move_the_global_generators() -> None:
    samples, reference = gaussian(30, shift=0.5, seed=1), reference_of(gaussian(50))
    found = []
    for perturbation in (1, 2):
        random.seed(perturbation)
        np.random.seed(perturbation)
        torch.manual_seed(perturbation)
        before = global_generators()
        found.append(compare(samples, reference, evaluation(), seed=3))
        assert global_generators() == before
    assert found[0] == found[1]
    assert compare(samples, reference, evaluation(), seed=4)["kid"] != found[0]["kid"]


def test_metrics_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    compare(gaussian(30), reference_of(gaussian(50)), evaluation(), seed=0)
    assert capfd.readouterr() == ("", "")


def test_only_inceptions_distance_is_called_fid() -> None:
    reference = reference_of(gaussian(50))
    inception = replace(reference, key=replace(reference.key, extractor="inception"))
    others = {"kid", "precision", "recall", "density", "coverage", "nearest"}
    assert compare(gaussian(30), reference, evaluation(), seed=0).keys() == {"fd_effnet_lite0", *others}
    assert compare(gaussian(30), inception, evaluation(), seed=0).keys() == {"fid", *others}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 20}, "kid_subset_size=20; allowed: at most 10"),
        ({"nearest_k": 10}, "nearest_k=10; allowed: at most 9"),
    ],
)
def test_too_few_samples_for_a_setting_are_named(changes: dict[str, int], message: str) -> None:
    subset = {} if "samples" in changes else {"kid_subset_size": 5}
    with pytest.raises(MaskDMError, match=message):
        compare(gaussian(10), reference_of(gaussian(50)), evaluation(**changes, **subset), seed=0)


# --- the reference and the floor --------------------------------------------------------------------------


def pixel_extractor() -> Extractor:
    """Stands in for a network: an image's features are its corner pixels."""
    return Extractor(
        "effnet_lite0", "fd_effnet_lite0", 4, "e" * 64, torch.device("cpu"), lambda pixels: pixels[:, 0, 0, :]
    )


def images(count: int, first: int = 0) -> np.ndarray:
    """Grey images, each of one level of its own."""
    levels = np.arange(first, first + count, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, 1, 4, 4)).copy()


def test_a_reference_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    reference = build_reference(pixel_extractor(), images(60), "d" * 64, evaluation())
    reference.save(tmp_path)
    loaded = load_reference(tmp_path, ReferenceKey.of(pixel_extractor(), "d" * 64, evaluation()))
    assert loaded.key == reference.key
    for name in ("features", "mean", "covariance", "radii"):
        saved, read = getattr(reference, name), getattr(loaded, name)
        assert saved.dtype == read.dtype
        np.testing.assert_array_equal(saved, read)


def test_a_reference_is_a_fixed_choice_of_different_images() -> None:
    first, second = (build_reference(pixel_extractor(), images(60), "d" * 64, evaluation()) for _ in range(2))
    np.testing.assert_array_equal(first.features, second.features)
    assert len(np.unique(first.features[:, 0])) == 50
    assert first.features[:, 0].max() > 50, "the first images of a data set may all be of one class"


def test_a_reference_needs_as_many_training_images() -> None:
    message = "evaluation.reference=50 but the data set has 40 training images; allowed: at most 40"
    with pytest.raises(MaskDMError, match=message):
        build_reference(pixel_extractor(), images(40), "d" * 64, evaluation())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_sha256", "d" * 63 + "0"),  # the file name holds its beginning only
        ("data_sha256", "0" * 64),
        ("extractor", "inception"),
        ("extractor_sha256", "0" * 64),
        ("input_size", 64),
        ("count", 49),
        ("nearest_k", 4),
    ],
)
def test_a_reference_of_something_else_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    reference = reference_of(gaussian(50))
    reference.save(tmp_path)
    with pytest.raises(MaskDMError, match="dvc repro reference") as error:
        load_reference(tmp_path, replace(reference.key, **{name: value}))
    assert "\n" not in str(error.value)


def test_a_renamed_reference_is_refused(tmp_path: Path) -> None:
    reference = reference_of(gaussian(50))
    expected = replace(reference.key, count=49)
    reference.save(tmp_path).rename(tmp_path / expected.filename)
    with pytest.raises(MaskDMError, match="count is 50, expected 49"):
        load_reference(tmp_path, expected)


@pytest.mark.parametrize("kept", [0, 100, 3000])
def test_a_truncated_reference_is_named(tmp_path: Path, kept: int) -> None:
    reference = reference_of(gaussian(50))
    path = reference.save(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(MaskDMError, match=f"{path.name}: corrupt reference"):
        load_reference(tmp_path, reference.key)


def test_a_reference_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(file: Any, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(MaskDMError, match="No space left on device"):
        reference_of(gaussian(50)).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_reference_without_enough_neighbours_says_how_many_are_allowed() -> None:
    with pytest.raises(MaskDMError, match=r"evaluation.nearest_k=50; allowed: less than .* \(50 images\)"):
        build_reference(pixel_extractor(), images(60), "d" * 64, evaluation(nearest_k=50))


def test_the_floor_takes_held_out_images_where_they_suffice() -> None:
    chosen, from_heldout = floor_images(images(60), images(40, first=100), evaluation())
    assert from_heldout == len(chosen) == 30
    assert chosen.min() >= 100
    assert len(np.unique(chosen)) == 30


def test_the_floor_fills_up_with_training_images_outside_the_reference() -> None:
    train, heldout = images(60), images(25, first=100)
    chosen, from_heldout = floor_images(train, heldout, evaluation())
    reference = build_reference(pixel_extractor(), train, "d" * 64, evaluation())
    assert (from_heldout, len(chosen)) == (25, 30)
    assert len(np.unique(chosen)) == 30
    assert not set(chosen[:, 0, 0, 0]) & set(reference.features[:, 0].astype(int))


def test_a_floor_takes_the_images_that_there_are() -> None:
    chosen, from_heldout = floor_images(images(60), images(15, first=100), evaluation())
    assert (from_heldout, len(chosen)) == (15, 25)
    whole = evaluation(reference=60)  # the usual protocol: every training image
    chosen, from_heldout = floor_images(images(60), images(15, first=100), whole)
    assert from_heldout == len(chosen) == 15
    few = evaluation(kid_subset_size=20)
    reference = build_reference(pixel_extractor(), images(60), "d" * 64, few)
    assert floor(pixel_extractor()(chosen), reference, few, seed=0)["fd_effnet_lite0"] > 0


def test_a_floor_without_enough_images_says_how_many_there_are() -> None:
    with pytest.raises(MaskDMError, match=r"evaluation.nearest_k=3 but .* 3 images outside the reference"):
        floor_counts(evaluation(), num_train=50, num_heldout=3)


# --- the stage --------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of 60 training and 25 held-out images, as `prepare` leaves them."""
    monkeypatch.chdir(tmp_path)
    # The real one makes torch deterministic for the whole process.
    monkeypatch.setattr(stage, "choose_device", lambda: torch.device("cpu"))
    settings = YAML(typ="safe").load(PROJECT / "params.yaml")
    settings["evaluation"] = evaluation().model_dump()
    YAML(typ="safe").dump(settings, tmp_path / "params.yaml")
    info = {
        "name": "fashion_mnist",
        "source": "drawn",
        "files": {},
        "train": 60,
        "heldout": 25,
        "shape": [1, 8, 8],
        "num_classes": None,
        "class_names": None,
        "sha256": "d" * 64,
        "skipped": [],
    }
    prepared = tmp_path / "data" / "prepared"
    prepared.mkdir(parents=True)
    (prepared / "dataset.json").write_text(json.dumps(info))
    np.save(prepared / "images.npy", np.random.default_rng(0).integers(0, 256, (85, 1, 8, 8), dtype=np.uint8))
    return tmp_path


def test_the_stage_writes_a_reference_that_an_evaluation_can_load_and_the_floor(project: Path) -> None:
    stage.main([])
    extractor = load_extractor(evaluation(), torch.device("cpu"))
    reference = load_reference(project / "data" / "reference", ReferenceKey.of(extractor, "d" * 64, evaluation()))
    record = json.loads((project / "records" / "reference.json").read_text())
    prepared = np.load(project / "data" / "prepared" / "images.npy")
    real, from_heldout = floor_images(prepared[:60], prepared[60:], evaluation())
    expected = compare(extract(extractor, real, 16), reference, evaluation(), seed=0)
    assert record.pop("floor") == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert record == {
        "floor_images": from_heldout,
        "floor_training_images": 5,
        "reference_images": 50,
        "extractor": "effnet_lite0",
        "extractor_sha256": extractor.sha256,
        "input_size": 32,
        "data_sha256": "d" * 64,
    }


def test_the_stage_says_in_one_line_what_is_wrong(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "data" / "prepared" / "images.npy").unlink()
    with pytest.raises(SystemExit, match="2"):
        stage.main([])
    assert capsys.readouterr().err.count("\n") == 1
    assert not (project / "records").exists()
