"""Features -> numbers: how far generated images are from real ones, and how far real images are from real ones.

The formulas are torch-fidelity's, and prdc's for density and coverage. All draws are seeded; the global generators are
neither read nor moved.
"""

import json
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from maskdm.config.params import Evaluation
from maskdm.evaluation.extractors import METRIC_NAMES, Extractor, extract
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import write_atomically

SELECTION_SEED = 0  # of the fixed shuffles that choose real images: the same for every run, whatever its seed
BLOCK = 1000  # rows or columns of a distance matrix held at once, to bound memory
ARRAYS = ("features", "mean", "covariance", "radii")  # of a reference, in the order of its fields


# --- distances between two sets of features [N, D] and [M, D] ----------------------------------------------


def statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D], float64, of features [N, D]."""
    found = fid_features_to_statistics(torch.from_numpy(features).double())
    return found["mu"], found["sigma"]


def frechet_distance(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """Fréchet distance of two Gaussians, each `(mean, covariance)` (Heusel et al. 2017, arXiv 1706.08500).

    The covariances may be singular, as they are with fewer samples than dimensions.
    """
    gaussians = [{"mu": mean, "sigma": covariance} for mean, covariance in (first, second)]
    distance: float = fid_statistics_to_metric(*gaussians, verbose=False)[KEY_METRIC_FID]
    return max(distance, 0.0)  # rounding takes equal Gaussians a little below 0


def kid(samples: np.ndarray, reference: np.ndarray, subsets: int, subset_size: int, seed: int) -> float:
    """Kernel distance: mean unbiased MMD^2 with a cubic kernel over random subsets (arXiv 1801.01401).

    May be slightly negative where the sets agree, since the estimate is unbiased. It is taken in the features' own
    precision: float32 is twice as fast as float64 and off by 1e-7, far below the spread of the random subsets.
    """
    found = kid_features_to_metric(
        torch.from_numpy(samples),
        torch.from_numpy(reference),
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
    )
    mean: float = found[KEY_METRIC_KID_MEAN]
    return mean


def neighbour_radii(features: np.ndarray, nearest_k: int) -> np.ndarray:
    """Distances, float64 [N], from each of `features` [N, D] to its `nearest_k`-th nearest neighbour among the others.

    The balls of these radii are the set's manifold (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1).
    """
    points = torch.from_numpy(features).double()
    radii = [torch.cdist(block, points).kthvalue(nearest_k + 1).values for block in points.split(BLOCK)]  # + itself
    return torch.cat(radii).numpy()


def fidelity_and_diversity(
    samples: tuple[np.ndarray, np.ndarray], real: tuple[np.ndarray, np.ndarray], nearest_k: int
) -> dict[str, float]:
    """How samples lie among real images: two measures of fidelity, two of diversity, and one of copying.

    Precision is the share of samples within the real images' manifold, and recall is the reverse (Kynkäänniemi et al.
    2019, arXiv 1904.06991, eq. 2). Density and coverage are of Naeem et al. 2020 (arXiv 2002.09797, section 3.2):

        density  = 1/(k N) sum_j sum_i [sample j is in the ball of real image i]
        coverage = 1/M sum_i [a sample is in the ball of real image i]

    The measure of copies is how far samples are from the real image nearest to each, in units of how far the real
    images' neighbours are:

        nearest  = mean_j min_i |sample j - real image i| / mean_i radius i

    Samples that a network has learnt by heart have 0. What others have shows in real images that it has not seen.

    Density is about 1 where both sets are of one distribution, and may exceed 1. The paper suggests k = 5. Here one k
    serves all four measures, so that they speak of the same balls.

    Precision and recall are torch-fidelity's, which finds the radii of the real images, most of the work, anew for
    every set of samples. Density and coverage are those of prdc, their authors' package.

    Args:
        samples: features [N, D] and their `neighbour_radii` [N].
        real: the same of real images, [M, D] and [M].
        nearest_k: k of both sets' radii.

    Returns:
        `{"precision": ..., "recall": ..., "density": ..., "coverage": ..., "nearest": ...}`.
    """
    points, radii = (torch.from_numpy(array).double() for array in samples)
    precise = torch.zeros(len(points), dtype=torch.bool)
    balls = torch.zeros(len(points), dtype=torch.int64)  # of real images, that hold each sample
    nearest = torch.full((len(points),), torch.inf, dtype=torch.float64)
    recalled, covered = [], []
    for block, block_radii in zip(*(torch.from_numpy(array).double().split(BLOCK) for array in real), strict=True):
        distances = torch.cdist(points, block)
        nearest = torch.minimum(nearest, distances.min(dim=1).values)
        precise |= (distances <= block_radii).any(dim=1)
        recalled.append((distances <= radii[:, None]).any(dim=0))
        # Without the edge of the balls, as in prdc: the k-th neighbour lies on it. A ball holds its centre and k - 1
        # neighbours then, so that the density of the real images themselves is 1.
        held = distances < block_radii
        balls += held.sum(dim=1)
        covered.append(held.any(dim=0))
    return {
        "precision": precise.double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
        "density": balls.double().mean().item() / nearest_k,
        "coverage": torch.cat(covered).double().mean().item(),
        "nearest": nearest.mean().item() / max(float(real[1].mean()), sys.float_info.min),  # real images may be alike
    }


# --- the real images that samples are compared with -------------------------------------------------------


@dataclass(frozen=True)
class ReferenceKey:
    """What a reference depends on; equal keys mean equal references."""

    data_sha256: str  # of the prepared data set
    extractor: str
    extractor_sha256: str  # of its weights
    input_size: int  # pixels a side that the extractor saw
    count: int  # images
    nearest_k: int  # neighbour whose distance is an image's radius

    @classmethod
    def of(cls, extractor: Extractor, data_sha256: str, evaluation: Evaluation) -> Self:
        """The key of `evaluation.reference` images of a data set, seen by `extractor`."""
        size = extractor.input_size
        return cls(data_sha256, extractor.name, extractor.sha256, size, evaluation.reference, evaluation.nearest_k)

    @property
    def filename(self) -> str:
        """Where a reference with this key lies in its folder."""
        return f"{self.extractor}-{self.input_size}px-{self.count}-{self.data_sha256[:12]}.npz"


@dataclass(frozen=True)
class Reference:
    """Features of real images, float32 [M, D], and in float64 their mean [D], covariance [D, D] and radii [M]."""

    key: ReferenceKey
    features: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    radii: np.ndarray

    @classmethod
    def of(cls, key: ReferenceKey, features: np.ndarray) -> Self:
        """The reference with these features, and all of it that does not depend on samples."""
        return cls(key, features, *statistics(features), neighbour_radii(features, key.nearest_k))

    def save(self, folder: Path) -> Path:
        """Write to a file in `folder` that is named by the key, whole or not at all; returns its path.

        Raises:
            MaskDMError: it cannot be written.
        """
        path = folder / self.key.filename
        arrays = {name: getattr(self, name) for name in ARRAYS}
        write_atomically(path, lambda file: np.savez(file, key=json.dumps(asdict(self.key)), **arrays))
        return path


def load_reference(folder: Path, expected: ReferenceKey) -> Reference:
    """Read the reference with the key `expected` from `folder`.

    Raises:
        MaskDMError: there is none, it is corrupt, or it was computed from something else.
    """
    path = folder / expected.filename
    if not path.is_file():
        others = ", ".join(sorted(other.name for other in folder.glob("*.npz"))) or "nothing"
        raise MaskDMError(f"{path}: no such reference, the folder has {others}; make it with `dvc repro reference`")
    try:
        with path.open("rb") as file, np.load(file) as stored:  # given a path, np.load leaves a corrupt file open
            key = ReferenceKey(**json.loads(str(stored["key"])))
            reference = Reference(key, *(stored[name] for name in ARRAYS))
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise MaskDMError(f"{path}: corrupt reference; make it again with `dvc repro -f reference`") from error
    for name, value in asdict(expected).items():
        if (found := getattr(key, name)) != value:
            raise MaskDMError(f"{path}: {name} is {found}, expected {value}; make it again with `dvc repro reference`")
    return reference


def build_reference(extractor: Extractor, train: np.ndarray, data_sha256: str, evaluation: Evaluation) -> Reference:
    """The reference of `evaluation.reference` training images, a fixed choice from `train`, uint8 [n, C, H, W].

    Raises:
        MaskDMError: there are not as many training images, or too few for `nearest_k`.
    """
    check_reference(evaluation, len(train))
    chosen = np.sort(_shuffled(len(train))[: evaluation.reference])  # sorted: a memory map is read front to back
    features = extract(extractor, train[chosen], evaluation.batch_size)
    return Reference.of(ReferenceKey.of(extractor, data_sha256, evaluation), features)


def check_reference(evaluation: Evaluation, num_train: int) -> None:
    """Refuse a reference that `num_train` training images do not suffice for.

    Raises:
        MaskDMError: there are too few, or too few for `nearest_k`.
    """
    if evaluation.reference > num_train:
        raise MaskDMError(
            f"evaluation.reference={evaluation.reference} but the data set has {num_train} training images; "
            f"allowed: at most {num_train}"
        )
    if evaluation.nearest_k >= evaluation.reference:
        raise MaskDMError(
            f"evaluation.nearest_k={evaluation.nearest_k}; allowed: less than evaluation.reference "
            f"({evaluation.reference} images)"
        )


def floor_counts(evaluation: Evaluation, num_train: int, num_heldout: int) -> tuple[int, int]:
    """How many held-out images, and how many training images outside the reference, the floor is measured on.

    As many as an evaluation has samples, held-out ones first; where there are fewer such images, all of them.

    Raises:
        MaskDMError: they are too few for `nearest_k`.
    """
    from_heldout = min(evaluation.samples, num_heldout)
    from_train = min(evaluation.samples - from_heldout, num_train - evaluation.reference)
    if from_heldout + from_train <= evaluation.nearest_k:
        raise MaskDMError(
            f"evaluation.nearest_k={evaluation.nearest_k} but the data set has {from_heldout + from_train} images "
            "outside the reference, held out or for training; allowed: fewer neighbours, a larger data.holdout or a "
            "smaller evaluation.reference"
        )
    return from_heldout, from_train


def floor_images(train: np.ndarray, heldout: np.ndarray, evaluation: Evaluation) -> tuple[np.ndarray, int]:
    """Real images that are not in the reference, as many as `floor_counts` says, and how many of them are held out.

    Raises:
        MaskDMError: there are not enough images.
    """
    held, spare = floor_counts(evaluation, len(train), len(heldout))
    from_heldout = _shuffled(len(heldout))[:held]
    from_train = _shuffled(len(train))[evaluation.reference :][:spare]
    return np.concatenate([heldout[np.sort(from_heldout)], train[np.sort(from_train)]]), held


def floor(features: np.ndarray, reference: Reference, evaluation: Evaluation, seed: int) -> dict[str, float]:
    """What `compare` gives for real images, whose features these are; KID by smaller subsets where they are few."""
    subset = min(evaluation.kid_subset_size, len(features))
    return compare(features, reference, evaluation.model_copy(update={"kid_subset_size": subset}), seed)


def compare(samples: np.ndarray, reference: Reference, evaluation: Evaluation, seed: int) -> dict[str, float]:
    """All metrics of features of samples, float32 [N, D], against the reference.

    Returns:
        `{"fd_effnet_lite0": ..., "kid": ...}`, or "fid" with Inception-v3, and what `fidelity_and_diversity` gives.

    Raises:
        MaskDMError: there are too few samples or reference images for `kid_subset_size` or `nearest_k`.
    """
    fewest = min(len(samples), len(reference.features))
    for name, needed in (("kid_subset_size", evaluation.kid_subset_size), ("nearest_k", evaluation.nearest_k + 1)):
        if needed > fewest:
            given = getattr(evaluation, name)
            raise MaskDMError(
                f"evaluation.{name}={given}; allowed: at most {given - needed + fewest} ({fewest} images)"
            )
    nearest_k = reference.key.nearest_k
    own, real = (samples, neighbour_radii(samples, nearest_k)), (reference.features, reference.radii)
    return {
        METRIC_NAMES[reference.key.extractor]: frechet_distance(
            statistics(samples), (reference.mean, reference.covariance)
        ),
        "kid": kid(samples, reference.features, evaluation.kid_subsets, evaluation.kid_subset_size, seed),
        **fidelity_and_diversity(own, real, nearest_k),
    }


def _shuffled(count: int) -> np.ndarray:
    """A fixed shuffle of `range(count)`: files may be sorted by class, so their first part is no fair choice."""
    return np.random.default_rng(SELECTION_SEED).permutation(count)
