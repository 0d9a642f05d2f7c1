"""Where the work is done."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.threads import count_cores
from maskdm.runtime.torchrun import own_number


def choose_device() -> torch.device:
    """The GPU of this process if there is one. Every operation is deterministic: the same seed gives the same weights.

    Raises:
        MaskDMError: torchrun started more processes than the machine has GPUs.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may not be deterministic
    torch.use_deterministic_algorithms(True)
    # Nothing reads memory before it is written, and filling it is a tenth of a GPU's step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if not torch.cuda.is_available():
        if "OMP_NUM_THREADS" not in os.environ and (cores := count_cores()) < torch.get_num_threads():
            torch.set_num_threads(cores)  # torch knows nothing of a container's quota
        return torch.device("cpu")
    index = own_number("LOCAL_RANK")  # on this machine
    if index >= (gpus := torch.cuda.device_count()):
        raise MaskDMError(f"process {index + 1} on this machine; allowed: at most {gpus}, one for each GPU")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Let a GPU multiply float32 matrices in TF32, with 10 bits of 23: three times as fast. A CPU is left as it is.

    For predictions alone: of one it changes a thousandth (reports/gpu.md), less than training in bfloat16 does.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
