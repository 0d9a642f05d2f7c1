"""All metrics of one set of images against another: folders, samples of weights, the profile's reference."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskdm.config.params import Evaluation, Params
from maskdm.datasets.folders import read_folder
from maskdm.datasets.prepared import PreparedData
from maskdm.engine.judge import sample_labels
from maskdm.engine.project import Project
from maskdm.engine.weights import Weights
from maskdm.evaluation.extractors import Extractor, extract, load_extractor
from maskdm.evaluation.metrics import Reference, ReferenceKey, compare, floor, floor_images, load_reference
from maskdm.evaluation.sampling import sample_images
from maskdm.runtime.device import choose_device
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import REFERENCE
from maskdm.runtime.processes import ALONE
from maskdm.training.loop import make_heldout_loss
from maskdm.training.objective import make_objective


@dataclass(frozen=True)
class Measured:
    """What was compared with what, and how far apart they are."""

    images: int  # that are judged
    reference_images: int
    metrics: dict[str, float]  # as `evaluation.metrics.compare` names them; `heldout_loss` of weights
    floor: dict[str, float]  # the same of real images against real images
    floor_images: int  # against so many
    floor_reference_images: int
    extractor: str
    input_size: int


def measure_folders(first: Path, second: Path, params: Params) -> Measured:
    """The images of one folder against those of another, all brought to the size of `params`.

    Raises:
        MaskDMError: a folder has no images, or too few.
    """
    real = read_real(second, params)
    images = _read(first, params, params.evaluation.samples)
    _check_count(len(images), params.evaluation)
    return _against(real, images, params.evaluation)


def measure_weights(weights: Weights, params: Params, seed: int, folder: Path | None) -> Measured:
    """Samples of weights against the images of a folder, or without one against the profile's reference.

    Raises:
        MaskDMError: the folder has too few images, or the reference or the data is missing or damaged.
    """
    _check_count(params.evaluation.samples, params.evaluation)
    if folder is not None:
        real = read_real(folder, params)  # first: what is wrong with it is said before anything is drawn
        labels = weights.labels(params.evaluation.samples, None)
        images = sample_images(
            weights.network, weights.objective, weights.sampling, range(params.evaluation.samples), seed, labels
        )
        return _against(real, images, params.evaluation)
    return _against_profile(weights, params, seed)


def _against_profile(weights: Weights, params: Params, seed: int) -> Measured:
    project = Project.open(ALONE)
    data, evaluation = project.data, params.evaluation
    _check_shape(weights, data)
    extractor = load_extractor(evaluation, project.device)
    reference = load_reference(REFERENCE, ReferenceKey.of(extractor, data.info["sha256"], evaluation))
    own = project.trial(params.baseline, seed)
    labels = sample_labels(own) if weights.network.num_classes is not None else None
    images = sample_images(
        weights.network, weights.objective, weights.sampling, range(evaluation.samples), seed, labels
    )
    objective = make_objective(weights.objective)
    heldout = make_heldout_loss(weights.network, objective, data, params.heldout.images, seed, project.device)
    real, _ = floor_images(data.train, data.heldout, evaluation)
    return Measured(
        images=len(images),
        reference_images=evaluation.reference,
        metrics={"heldout_loss": heldout(weights.network)}
        | compare(extract(extractor, images, evaluation.batch_size), reference, evaluation, seed),
        floor=floor(extract(extractor, real, evaluation.batch_size), reference, evaluation, seed=0),
        floor_images=len(real),
        floor_reference_images=evaluation.reference,
        extractor=extractor.name,
        input_size=extractor.input_size,
    )


def read_real(folder: Path, params: Params) -> np.ndarray:
    """Images of a folder, in a fixed random order, so that each half of them is a fair sample.

    Raises:
        MaskDMError: there are too few for two halves.
    """
    real = _read(folder, params, params.evaluation.reference)
    needed = 2 * (params.evaluation.nearest_k + 1)
    if len(real) < needed:
        raise MaskDMError(
            f"{folder}: {len(real)} images; allowed: at least {needed}, two halves of evaluation.nearest_k + 1"
        )
    return real[np.random.default_rng(0).permutation(len(real))]


def _against(real: np.ndarray, images: np.ndarray, evaluation: Evaluation) -> Measured:
    """Against real images; the floor is the distance between their two halves."""
    extractor, half = load_extractor(evaluation, choose_device()), len(real) // 2
    features = extract(extractor, real, evaluation.batch_size)
    own = extract(extractor, images, evaluation.batch_size)
    return Measured(
        images=len(images),
        reference_images=len(real),
        metrics=_compared(own, features, extractor, evaluation),
        floor=_compared(features[:half], features[half:], extractor, evaluation),
        floor_images=half,
        floor_reference_images=len(real) - half,
        extractor=extractor.name,
        input_size=extractor.input_size,
    )


def _check_count(images: int, evaluation: Evaluation) -> None:
    if images <= evaluation.nearest_k:
        raise MaskDMError(
            f"{images} images to judge; allowed: at least {evaluation.nearest_k + 1}, evaluation.nearest_k + 1"
        )


def _compared(samples: np.ndarray, real: np.ndarray, extractor: Extractor, evaluation: Evaluation) -> dict[str, float]:
    """All metrics of features `[N, D]` against those of real images `[M, D]`, however many there are."""
    subset = min(evaluation.kid_subset_size, len(samples), len(real))
    fitting = evaluation.model_copy(update={"samples": len(samples), "reference": len(real), "kid_subset_size": subset})
    content = hashlib.sha256(real.tobytes()).hexdigest()
    return compare(samples, Reference.of(ReferenceKey.of(extractor, content, fitting), real), fitting, seed=0)


def _read(folder: Path, params: Params, count: int) -> np.ndarray:
    return read_folder(folder, params.data.image_size, params.data.channels, count)


def _check_shape(weights: Weights, data: PreparedData) -> None:
    network = weights.network
    own = (network.token_dim // network.patch_size**2, *(side * network.patch_size for side in network.grid))
    if own != tuple(data.info["shape"]):
        shapes = ("x".join(map(str, shape)) for shape in (own, data.info["shape"]))
        raise MaskDMError(f"{weights.folder}: images of {next(shapes)}; allowed: {next(shapes)}, as in data/prepared")
