"""What Muon's update of the network takes with products in bfloat16, and with the same in float32 (`maskdm.bfloat16`).

`python -m benchmarks.bfloat16` measures both on any CPU, one with bfloat16 instructions too.
"""

from contextlib import AbstractContextManager, nullcontext
from statistics import median

import torch
from torch.optim import Muon

from benchmarks.machine import interleaved
from maskdm.config.reading import load_params, load_recipe
from maskdm.training.bfloat16 import Float32Products, has_instructions
from maskdm.training.optimizers import make_optimizers
from maskdm.training.plan import build_network

ROUNDS = 15


def main() -> None:
    """Measure and print."""
    params = load_params()
    network = build_network(params.model, params.data, num_classes=10)
    for weight in network.parameters():
        weight.grad = torch.randn_like(weight)
    optimizers = make_optimizers(network, load_recipe("tuned").optimisation)
    (muon,) = (optimizer for optimizer in optimizers if isinstance(optimizer, Muon))

    def update(products: AbstractContextManager[object]) -> None:
        with products:
            muon.step()

    cases = {"bfloat16": lambda: update(nullcontext()), "float32": lambda: update(Float32Products())}
    seconds = interleaved(cases, ROUNDS)
    ratios = [before / after for before, after in zip(*seconds.values(), strict=True)]
    print(f"bfloat16 instructions: {'yes' if has_instructions() else 'no'}; {torch.get_num_threads()} threads")
    print(*(f"{name}: {1e3 * median(taken):.0f} ms an update" for name, taken in seconds.items()), sep="\n")
    print(f"float32 is {median(ratios):.2f} times as fast")


if __name__ == "__main__":
    main()
