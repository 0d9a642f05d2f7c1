"""Which input size of EfficientNet-Lite0 ranks corruptions of real images, and at what cost.

Held-out images are corrupted more and more and compared with training images, as an evaluation compares samples.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import kendalltau

from benchmarks.machine import interleaved, matmul_gflops
from maskdm.config.params import Evaluation
from maskdm.config.reading import load_params
from maskdm.datasets.prepared import PreparedData
from maskdm.evaluation.extractors import Extractor, extract, load_extractor
from maskdm.evaluation.metrics import frechet_distance, statistics
from maskdm.runtime.paths import PREPARED, ROOT

SIZES = (32, 48, 64, 96, 128)
SAMPLES = 1000  # images a set
FLOORS = 5  # disjoint sets of real images; the first one is corrupted
REFERENCE = 3000
BATCH = 16
TOKEN = 4  # pixels a side of the patches that the default profile's network draws

Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def noisy(images: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    """Gaussian noise, in grey levels."""
    return images + deviation * random.normal(size=images.shape)


def blurred(images: np.ndarray, deviation: float, _: np.random.Generator) -> np.ndarray:
    """A Gaussian blur, in pixels."""
    blurry: np.ndarray = gaussian_filter(images.astype(np.float64), (0, 0, deviation, deviation))
    return blurry


def blocky(images: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    """Tokens that do not fit together: each is lighter or darker by some grey levels."""
    count, channels, height, width = images.shape
    shifts = deviation * random.normal(size=(count, channels, height // TOKEN, width // TOKEN))
    return images + shifts.repeat(TOKEN, axis=2).repeat(TOKEN, axis=3)


STRENGTHS: dict[str, tuple[Corruption | None, tuple[float, ...]]] = {
    "noise, grey levels": (noisy, (0.5, 1, 2)),
    "blur, pixels": (blurred, (0.4, 0.5, 0.7)),
    "blocky tokens, grey levels": (blocky, (1, 2, 4)),
    "share of one class": (None, (0.1, 0.2, 0.4)),
}


def corrupted(data: PreparedData) -> dict[tuple[str, float], np.ndarray]:
    """(corruption, strength) -> the first `SAMPLES` held-out images, uint8, corrupted."""
    assert data.heldout_labels is not None
    images, others = data.heldout[:SAMPLES], data.heldout[SAMPLES:]
    of_one_class = others[data.heldout_labels[SAMPLES:] == 0]
    sets = {}
    for name, (corrupt, strengths) in STRENGTHS.items():
        for strength in strengths:
            if corrupt is None:
                replaced = round(strength * SAMPLES)
                sets[name, strength] = np.concatenate([of_one_class[:replaced], images[replaced:]])
            else:
                changed = corrupt(images, strength, np.random.default_rng(0))
                sets[name, strength] = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    return sets


def measure(
    extractor: Extractor, data: PreparedData, sets: dict[tuple[str, float], np.ndarray]
) -> tuple[np.ndarray, dict[tuple[str, float], float]]:
    """Distances of the real sets, [FLOORS], and of every corrupted one, to the reference."""
    target = statistics(extract(extractor, data.train[:REFERENCE], BATCH))

    def distance(images: np.ndarray) -> float:
        return frechet_distance(statistics(extract(extractor, images, BATCH)), target)

    floor = np.array([distance(data.heldout[i * SAMPLES : (i + 1) * SAMPLES]) for i in range(FLOORS)])
    return floor, {key: distance(images) for key, images in sets.items()}


def row(size: int, floor: np.ndarray, distances: dict[tuple[str, float], float]) -> dict[str, str]:
    """How the distance at one size answers to each corruption."""
    limit = floor.mean() + 3 * floor.std(ddof=1)
    shown = {"pixels": str(size), "floor": f"{floor.mean():.1f} ± {floor.std(ddof=1):.1f}"}
    for name, (_, strengths) in STRENGTHS.items():
        found = [distances[name, strength] for strength in strengths]
        seen = next((f"{s:g}" for s, value in zip(strengths, found, strict=True) if value > limit), "none")
        rising = "rising" if all(np.diff([floor[0], *found]) > 0) else "NOT rising"
        shown[f"{name} ({', '.join(map('{:g}'.format, strengths))})"] = (
            f"{', '.join(f'{value / floor.mean():.2f}' for value in found)}; {rising}; seen from {seen}"
        )
    return shown


def main() -> None:
    """Print the table: distances as multiples of the floor, the mean distance of real images."""
    data = PreparedData.open(PREPARED)
    evaluation: Evaluation = load_params(ROOT / "params.yaml").evaluation
    sets = corrupted(data)
    extractors = {
        size: load_extractor(evaluation.model_copy(update={"input_size": size}), torch.device("cpu")) for size in SIZES
    }
    rows, ranked = [], {}
    for size, extractor in extractors.items():
        floor, distances = measure(extractor, data, sets)
        ranked[size] = list(distances.values())
        rows.append(row(size, floor, distances))
    batch = data.train[:BATCH]
    cases = {str(size): lambda extractor=extractor: extractor(batch) for size, extractor in extractors.items()}
    seconds = interleaved(cases, 10)
    for shown, size in zip(rows, SIZES, strict=True):
        tau = kendalltau(ranked[size], ranked[SIZES[-1]]).statistic
        shown[f"rank correlation with {SIZES[-1]} pixels"] = f"{tau:.2f}"
        shown["seconds per 1000 images"] = f"{np.median(seconds[str(size)]) * 1000 / BATCH:.1f}"
    print(pd.DataFrame(rows).to_markdown(index=False))
    print(f"\nfloat32 matmul: {matmul_gflops():.0f} GFLOP/s on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
