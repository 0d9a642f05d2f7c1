"""bfloat16 products on a CPU that has no instructions for them: the same numbers, and all of Muon's."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Muon
from torch.utils._python_dispatch import TorchDispatchMode

from maskdm.training import bfloat16
from maskdm.training.bfloat16 import quick_products

CPU = torch.device("cpu")


class Multiplied(TorchDispatchMode):
    """The types of the matrices that torch was given to multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.types.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "has_instructions", lambda: False)


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)


def updated(products: AbstractContextManager[object]) -> Tensor:
    """Weights after three steps of Muon."""
    weights = torch.nn.Parameter(matrix(48, 16, torch.float32))
    muon = Muon([weights], lr=0.1)
    with products:
        for step in range(3):
            weights.grad = matrix(48, 16, torch.float32).roll(step, dims=0)
            muon.step()
    return weights.detach()


@pytest.mark.usefixtures("without_instructions")
@pytest.mark.parametrize(
    "product", [lambda a, b, c: b @ c, lambda a, b, c: torch.addmm(a, b, c, beta=-0.5, alpha=2.0)], ids=["@", "addmm"]
)
def test_products_are_those_of_float32_rounded_once(product: Callable[..., Tensor]) -> None:
    factors = matrix(7, 5), matrix(7, 300), matrix(300, 5)
    with quick_products(CPU):
        found = product(*factors)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, product(*(factor.float() for factor in factors)).bfloat16())


@pytest.mark.usefixtures("without_instructions")
def test_products_of_other_types_stay_as_they_are() -> None:
    a, b = matrix(4, 4, torch.float64), matrix(4, 4, torch.float64)
    with quick_products(CPU):
        assert torch.equal(a @ b, torch.mm(a, b))


@pytest.mark.usefixtures("without_instructions")
def test_muon_multiplies_in_float32_and_updates_as_before() -> None:
    with Multiplied() as multiplied:
        found = updated(quick_products(CPU))
    assert set(multiplied.types) == {torch.float32}
    with Multiplied() as multiplied:
        expected = updated(nullcontext())
    assert set(multiplied.types) == {torch.bfloat16}
    start = matrix(48, 16, torch.float32)
    change = expected - start
    assert (found - expected).norm() < 0.02 * change.norm()  # three steps of numbers with 8 bits


@pytest.mark.parametrize(("device", "instructions"), [("cpu", True), ("cuda", False)])
def test_what_multiplies_quickly_is_left_alone(
    device: str, instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfloat16, "has_instructions", lambda: instructions)
    with quick_products(torch.device(device)), Multiplied() as multiplied:
        _ = matrix(3, 3) @ matrix(3, 3)
    assert multiplied.types == [torch.bfloat16]
