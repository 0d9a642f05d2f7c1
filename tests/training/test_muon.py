"""Muon's update is that of the published iterations, whatever the shape, for fewer products."""

import pytest
import torch
from torch import Tensor, nn

from maskdm.training.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonal

SHAPES = [(16, 48), (48, 16), (16, 16), (16, 20), (5, 64)]


def published(matrix: Tensor) -> Tensor:
    """The iterations on the matrix itself, in float64."""
    a, b, c = COEFFICIENTS
    x = matrix.double() / torch.linalg.matrix_norm(matrix.double())
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def gradients(shape: tuple[int, int], spread: float = 2.0) -> Tensor:
    """With singular values over `spread` orders of magnitude."""
    left, _, right = torch.linalg.svd(torch.randn(*shape, dtype=torch.float64), full_matrices=False)
    return (left @ torch.diag(torch.logspace(0, -spread, min(shape), dtype=torch.float64)) @ right).float()


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] <= shape[1]])
def test_the_iterations_are_the_published_ones(shape: tuple[int, int]) -> None:
    matrices = torch.stack([gradients(shape) for _ in range(3)])
    for found, matrix in zip(orthogonal(matrices), matrices, strict=True):
        torch.testing.assert_close(found.double(), published(matrix), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spread", [4.0, 6.0])
def test_small_singular_values_grow_as_published(spread: float) -> None:
    """Squared they are below the last digit of float32: there the update may differ, but stays bounded."""
    matrix = gradients((16, 64), spread)
    found, expected = (torch.linalg.svdvals(one.double()) for one in (orthogonal(matrix[None])[0], published(matrix)))
    assert (found - expected).abs().max() < 0.02
    assert found.max() < 1.3


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_torchs_muon_up_to_its_rounding(shape: tuple[int, int]) -> None:
    """It iterates in bfloat16, which has two to three digits."""
    start = torch.randn(shape)
    own, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([own], lr=0.1, momentum=0.9, weight_decay=0.03)
    theirs = torch.optim.Muon([other], lr=0.1, momentum=0.9, weight_decay=0.03, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        own.grad = gradients(shape, 1.0)
        other.grad = own.grad.clone()
        ours.step()
        theirs.step()
    difference = (own - other).norm() / (other - start).norm()
    assert difference < 0.03


def test_matrices_of_one_shape_and_its_transpose_are_updated_as_if_alone() -> None:
    start = [torch.randn(8, 32), torch.randn(32, 8), torch.randn(8, 8)]
    grads = [torch.randn_like(one) for one in start]

    def updated(which: list[int]) -> list[Tensor]:
        weights = [nn.Parameter(start[i].clone()) for i in which]
        for weight, i in zip(weights, which, strict=True):
            weight.grad = grads[i].clone()
        Muon(weights, lr=0.1, momentum=0.9, weight_decay=0.1).step()
        return [weight.detach() for weight in weights]

    for together, i in zip(updated([0, 1, 2]), range(3), strict=True):
        torch.testing.assert_close(together, updated([i])[0])


def test_a_weight_without_a_gradient_stays() -> None:
    weights = [nn.Parameter(torch.ones(4, 8)), nn.Parameter(torch.ones(4, 8))]
    weights[0].grad = torch.randn(4, 8)
    Muon(weights, lr=0.1, momentum=0.9, weight_decay=0.1).step()
    assert not torch.equal(weights[0], torch.ones(4, 8))
    assert torch.equal(weights[1], torch.ones(4, 8))
