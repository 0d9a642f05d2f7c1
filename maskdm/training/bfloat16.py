"""Products of bfloat16 matrices on a CPU that has no instructions for them.

There torch (2.14) multiplies number by number, about thirty times as slowly as float32: Muon, which makes its updates
of such products, would take most of a training's time.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

PRODUCTS = (Tensor.matmul, torch.addmm)  # those of torch.optim.Muon; a mode sees `a @ b` as the first


def quick_products(device: torch.device) -> AbstractContextManager[object]:
    """In the `with` block a CPU without bfloat16 instructions forms such products in float32, and rounds the result.

    Such instructions do the same (they add up in float32), so that results differ as much as those of two kinds of
    CPU always do: like the number of threads, this belongs to the machine and not to the settings of a run.
    """
    return Float32Products() if device.type == "cpu" and not has_instructions() else nullcontext()


def has_instructions() -> bool:
    """Whether oneDNN, which multiplies for torch, takes bfloat16 here; torch has no public name for the question."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Float32Products(TorchFunctionMode):
    """In its `with` block `PRODUCTS` of bfloat16 matrices are float32's, rounded once."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in PRODUCTS and all(factor.dtype is torch.bfloat16 for factor in args):
            return func(*(factor.float() for factor in args), **(kwargs or {})).bfloat16()
        return func(*args, **(kwargs or {}))
