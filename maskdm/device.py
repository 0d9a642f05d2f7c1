"""Where the work is done."""

import os

import torch


def choose_device() -> torch.device:
    """The GPU if there is one. Every operation is deterministic: the same seed gives the same weights."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may not be deterministic
    torch.use_deterministic_algorithms(True)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
