"""What torchrun says of a process in its environment."""

import os

MARK = "TORCHELASTIC_RUN_ID"  # torchrun sets it


def within_torchrun() -> bool:
    """Whether torchrun started this process, or the one that started it."""
    return MARK in os.environ


def own_number(name: str) -> int:
    """`RANK`, `LOCAL_RANK`: the place of this process among those of torchrun; without torchrun 0.

    Clusters set the same variables, of a machine among others, for all that runs there (Kubeflow's PyTorchJob does).
    """
    return int(os.environ.get(name, "0")) if within_torchrun() else 0
