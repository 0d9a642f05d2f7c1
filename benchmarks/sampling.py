"""The fewest network evaluations whose samples are as good as DDIM's with 250 steps.

`python -m benchmarks.sampling [ARM ...]` judges the weights that `dvc repro` trained of some arms of `params.yaml` (by
default the baseline and the first masked arm) with its first seed, by the metric of its `evaluation`, with the same
initial noise for every sampler, and prints a table.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch

from maskdm.config.comparison import methods_in_words
from maskdm.config.params import Evaluation, Params, Sampling
from maskdm.engine.project import Project
from maskdm.evaluation.extractors import Extractor, extract, load_extractor
from maskdm.evaluation.metrics import Reference, ReferenceKey, frechet_distance, load_reference, statistics
from maskdm.evaluation.sampling import sample_images
from maskdm.networks.uvit import UViT
from maskdm.runtime.errors import MaskDMError, exit_with_one_line
from maskdm.runtime.paths import REFERENCE, stage_folder
from maskdm.runtime.processes import ALONE
from maskdm.training.checkpoint import load_snapshot

YARDSTICK = ("ddim", 250)
CANDIDATES = [
    *(("ddim", steps) for steps in (20, 50)),
    *((sampler, steps) for sampler in ("dpm_solver", "unipc") for steps in (4, 6, 8, 10, 12, 20)),
]


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arms", nargs="*", metavar="ARM")
    with exit_with_one_line():
        project = Project.open(ALONE)
        params = project.params
        masked = next((arm for arm, phases in params.arms.items() if methods_in_words(phases)), params.baseline)
        arms = parser.parse_args().arms or [params.baseline, masked]
        if unknown := set(arms) - params.arms.keys():
            raise MaskDMError(f"{min(unknown)}: no such arm; allowed: {', '.join(params.arms)}")
        distance_of = Distance.open(params.evaluation, project.data.info["sha256"], project.device)
        metric = distance_of.extractor.metric_name
        print(f"| arm | sampler | network evaluations | {metric} | to DDIM-{YARDSTICK[1]} | images/s |")
        print("|---|---|---|---|---|---|")
        for arm in arms:
            network = load_snapshot(stage_folder("finetune", arm, params.seeds[0]) / "weights", project.device)
            best = None
            for sampler, steps in (YARDSTICK, *CANDIDATES):
                distance, rate = judge(project, network, distance_of, sampler, steps)
                best = best or distance
                print(
                    f"| {arm} | {sampler} | {steps} | {distance:.1f} | {distance / best - 1:+.1%} | {rate:.0f} |",
                    flush=True,
                )


def judge(project: Project, network: UViT, distance_of: Distance, sampler: str, steps: int) -> tuple[float, float]:
    """The distance of as many samples as an evaluation draws, and the images a second."""
    params: Params = project.params
    settings = Sampling.model_validate(
        params.sampling.model_dump() | {"sampler": sampler, "num_inference_steps": steps, "eta": 0.0}
    )
    started = time.perf_counter()
    count = range(params.evaluation.samples)
    images = sample_images(network, project.recipe.objective, settings, count, params.seeds[0])
    seconds = time.perf_counter() - started
    return distance_of(images), len(images) / seconds


if __name__ == "__main__":
    main()
