"""Seconds of an evaluation's metrics, part by part, beside what torch-fidelity takes on float64 for the same."""

import numpy as np
import pandas as pd
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from benchmarks.machine import interleaved, matmul_gflops
from maskdm.evaluation.metrics import fidelity_and_diversity, frechet_distance, kid, neighbour_radii, statistics

SAMPLES, REFERENCE, DIMENSIONS = 1000, 10_000, 1280  # of the default profile
ROUNDS = 3


def main() -> None:
    """Print the table, for features drawn from a Gaussian: their values do not change the work."""
    random = np.random.default_rng(0)
    samples, real = (random.normal(size=(n, DIMENSIONS)).astype(np.float32) for n in (SAMPLES, REFERENCE))
    exact_samples, exact_real = samples.astype(np.float64), real.astype(np.float64)
    radii, target = neighbour_radii(real, 3), statistics(real)
    seconds = interleaved(
        {
            "precision and recall: torch-fidelity": lambda: prc_features_to_metric(
                torch.from_numpy(exact_samples),
                torch.from_numpy(exact_real),
                prc_neighborhood=3,
                prc_batch_size=1000,
                save_cpu_ram=True,
                verbose=False,
            ),
            "all four: radii known": lambda: fidelity_and_diversity(
                (samples, neighbour_radii(samples, 3)), (real, radii), 3
            ),
            "KID: float64": lambda: kid(exact_samples, exact_real, 100, 500, 0),
            "KID: float32": lambda: kid(samples, real, 100, 500, 0),
            "Fréchet distance": lambda: frechet_distance(statistics(samples), target),
        },
        ROUNDS,
    )
    rows = [{"part": name, "seconds": f"{np.median(values):.2f}"} for name, values in seconds.items()]
    print(pd.DataFrame(rows).to_markdown(index=False))
    for part, before, after in (
        ("precision and recall", "precision and recall: torch-fidelity", "all four: radii known"),
        ("KID", "KID: float64", "KID: float32"),
    ):
        print(f"\n{part}: {np.median(np.array(seconds[before]) / np.array(seconds[after])):.1f}× as fast")
    print(f"\nfloat32 matmul: {matmul_gflops():.0f} GFLOP/s on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
