"""Features -> numbers: how far generated images are from real ones, and how far real images are from real ones.

The formulas are torch-fidelity's, on float64. All draws are seeded; the global generators are neither read nor moved.
"""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from maskdm.config import Evaluation
from maskdm.errors import MaskDMError
from maskdm.extractors import METRIC_NAMES, Extractor, extract
from maskdm.files import write_atomically

SELECTION_SEED = 0  # of the fixed shuffles that choose real images: the same for every run, whatever its seed
PRC_BLOCK = 1000  # rows of a distance matrix held at once, to bound memory


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

    May be slightly negative where the sets agree, since the estimate is unbiased.
    """
    found = kid_features_to_metric(
        torch.from_numpy(samples).double(),
        torch.from_numpy(reference).double(),
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
    )
    mean: float = found[KEY_METRIC_KID_MEAN]
    return mean


def precision_recall(samples: np.ndarray, reference: np.ndarray, nearest_k: int) -> tuple[float, float]:
    """Share of samples within the reference's manifold, and the reverse (Kynkäänniemi et al., arXiv 1904.06991)."""
    found = prc_features_to_metric(
        torch.from_numpy(samples).double(),
        torch.from_numpy(reference).double(),
        prc_neighborhood=nearest_k,
        prc_batch_size=PRC_BLOCK,
        save_cpu_ram=True,
        verbose=False,
    )
    # The shares were averaged in float32: digits behind the sixth are rounding.
    return round(found[KEY_METRIC_PRECISION], 6), round(found[KEY_METRIC_RECALL], 6)


# --- the real images that samples are compared with -------------------------------------------------------


@dataclass(frozen=True)
class ReferenceKey:
    """What a reference depends on; equal keys mean equal references."""

    data_sha256: str  # of the prepared data set
    extractor: str
    extractor_sha256: str  # of its weights
    input_size: int  # pixels a side that the extractor saw
    count: int  # images

    @classmethod
    def of(cls, extractor: Extractor, data_sha256: str, count: int) -> Self:
        """The key of `count` images of a data set, seen by `extractor`."""
        return cls(data_sha256, extractor.name, extractor.sha256, extractor.input_size, count)

    @property
    def filename(self) -> str:
        """Where a reference with this key lies in its folder."""
        return f"{self.extractor}-{self.input_size}px-{self.count}-{self.data_sha256[:12]}.npz"


@dataclass(frozen=True)
class Reference:
    """Features of real images, float32 [M, D], and their mean [D] and covariance [D, D], float64."""

    key: ReferenceKey
    features: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray

    def save(self, folder: Path) -> Path:
        """Write to a file in `folder` that is named by the key, whole or not at all; returns its path.

        Raises:
            MaskDMError: it cannot be written.
        """
        path = folder / self.key.filename
        key = json.dumps(asdict(self.key))
        write_atomically(
            path,
            lambda file: np.savez(file, key=key, features=self.features, mean=self.mean, covariance=self.covariance),
        )
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
            reference = Reference(key, stored["features"], stored["mean"], stored["covariance"])
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise MaskDMError(f"{path}: corrupt reference; make it again with `dvc repro -f reference`") from error
    for name, value in asdict(expected).items():
        if (found := getattr(key, name)) != value:
            raise MaskDMError(f"{path}: {name} is {found}, expected {value}; make it again with `dvc repro reference`")
    return reference


def build_reference(extractor: Extractor, train: np.ndarray, data_sha256: str, evaluation: Evaluation) -> Reference:
    """The reference of `evaluation.reference` training images, a fixed choice from `train`, uint8 [n, C, H, W].

    Raises:
        MaskDMError: there are not as many training images.
    """
    if evaluation.reference > len(train):
        raise MaskDMError(
            f"evaluation.reference={evaluation.reference} but the data set has {len(train)} training images; "
            f"allowed: at most {len(train)}"
        )
    chosen = np.sort(_shuffled(len(train))[: evaluation.reference])  # sorted: a memory map is read front to back
    features = extract(extractor, train[chosen], evaluation.batch_size)
    return Reference(ReferenceKey.of(extractor, data_sha256, evaluation.reference), features, *statistics(features))


def floor_images(train: np.ndarray, heldout: np.ndarray, evaluation: Evaluation) -> tuple[np.ndarray, int]:
    """`evaluation.samples` real images, none of them in the reference, and how many of them are held out.

    Held-out images first; where they are too few, training images outside the reference fill up.

    Raises:
        MaskDMError: there are not enough images.
    """
    spare = _shuffled(len(train))[evaluation.reference :]
    available = len(heldout) + len(spare)
    if evaluation.samples > available:
        raise MaskDMError(
            f"evaluation.samples={evaluation.samples} but the data set has {available} images outside the reference "
            f"({len(heldout)} held out, {len(spare)} for training); allowed: at most {available}, or a smaller "
            "evaluation.reference"
        )
    from_heldout = _shuffled(len(heldout))[: evaluation.samples]
    from_train = spare[: evaluation.samples - len(from_heldout)]
    return np.concatenate([heldout[np.sort(from_heldout)], train[np.sort(from_train)]]), len(from_heldout)


def compare(samples: np.ndarray, reference: Reference, evaluation: Evaluation, seed: int) -> dict[str, float]:
    """All metrics of features of samples, float32 [N, D], against the reference.

    Returns:
        `{"fd_effnet_lite0": ..., "kid": ..., "precision": ..., "recall": ...}`, or "fid" with Inception-v3.

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
    precision, recall = precision_recall(samples, reference.features, evaluation.nearest_k)
    return {
        METRIC_NAMES[reference.key.extractor]: frechet_distance(
            statistics(samples), (reference.mean, reference.covariance)
        ),
        "kid": kid(samples, reference.features, evaluation.kid_subsets, evaluation.kid_subset_size, seed),
        "precision": precision,
        "recall": recall,
    }


def _shuffled(count: int) -> np.ndarray:
    """A fixed shuffle of `range(count)`: files may be sorted by class, so their first part is no fair choice."""
    return np.random.default_rng(SELECTION_SEED).permutation(count)
