"""The distance of images to the default reference, as the stage `evaluate` measures it."""

from dataclasses import dataclass

import numpy as np
import torch

from maskdm.config.params import Evaluation
from maskdm.evaluation.extractors import Extractor, extract, load_extractor
from maskdm.evaluation.metrics import Reference, ReferenceKey, frechet_distance, load_reference, statistics
from maskdm.runtime.paths import REFERENCE


@dataclass(frozen=True)
class Distance:
    """The metric of `evaluation` against the reference that `dvc repro` made of the data."""

    evaluation: Evaluation
    extractor: Extractor
    reference: Reference

    @classmethod
    def open(cls, evaluation: Evaluation, data_sha256: str, device: torch.device) -> "Distance":
        """Load the extractor and the reference.

        Raises:
            MaskDMError: one of them is missing or is not what the settings ask for.
        """
        extractor = load_extractor(evaluation, device)
        key = ReferenceKey.of(extractor, data_sha256, evaluation)
        return cls(evaluation, extractor, load_reference(REFERENCE, key))

    def __call__(self, images: np.ndarray) -> float:
        """The Fréchet distance of uint8 images `[n, C, H, W]`."""
        features = extract(self.extractor, images, self.evaluation.batch_size)
        return frechet_distance(statistics(features), (self.reference.mean, self.reference.covariance))
