"""Muon, with the iterations on the smaller Gram matrix: the same update for fewer FLOPs.

Muon (Jordan 2024, kellerjordan.github.io/posts/muon) replaces the momentum G of a weight by a matrix whose singular
values are all near 1. It applies the polynomial X <- (a + b A + c A^2) X, A = X X^T, five times to X = G / |G|. All
those factors are polynomials of the first A: they can be multiplied with each other first, and with X once at the end.
For matrices at least twice as long as wide this takes fewer products. torch.optim.Muon works on X all the time.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: steep at 0, so that few iterations do
ITERATIONS = 5


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised, for matrices alone.

    A step has the root mean square of AdamW's usual one (Liu et al. 2025, arXiv 2502.16982), so that both share a rate.

    Args:
        params: matrices, and no other weights.
        lr: learning rate; may be set for each step in `param_groups`.
        momentum: share of the past in the averaged gradient.
        weight_decay: share of the weights that a step with rate 1 would remove.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient; those of one shape together."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            for alike in _by_shape(weights):
                updates = orthogonal(torch.stack([self._momentum(weight, group["momentum"]) for weight in alike]))
                rate = 0.2 * max(updates.shape[1:]) ** 0.5 * group["lr"]
                steps = [_like(update, weight) for update, weight in zip(updates, alike, strict=True)]
                torch._foreach_add_(alike, steps, alpha=-rate)

    def _momentum(self, weight: Tensor, momentum: float) -> Tensor:
        """The Nesterov momentum after the new gradient, wide rather than tall."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        average = state["momentum"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(average, momentum)
        return update.T if update.shape[0] > update.shape[1] else update


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices `[n, r, c]`, r <= c, with their singular vectors, and singular values near 1.

    The Gram matrix squares the condition number, so this needs float32: bfloat16 has too few digits.
    """
    a, b, c = COEFFICIENTS
    x = matrices.float() / torch.linalg.matrix_norm(matrices.float(), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mT
    if x.shape[2] < 2 * x.shape[1]:  # nearly square: multiplying with x each time takes fewer products
        for iteration in range(ITERATIONS):
            gram = x @ x.mT if iteration else gram
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x
    factors = None
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        factors = factor if factors is None else factor @ factors
        if iteration < ITERATIONS - 1:
            gram = factor @ gram @ factor  # of the next x: all of these commute, and are symmetric
    assert factors is not None
    return factors @ x


def _by_shape(weights: Iterable[Tensor]) -> list[list[Tensor]]:
    """Weights that are of one shape, or of its transpose."""
    alike: defaultdict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for weight in weights:
        alike[tuple(sorted(weight.shape))].append(weight)
    return list(alike.values())


def _like(update: Tensor, weight: Tensor) -> Tensor:
    """The update in the shape of its weight."""
    return update if update.shape == weight.shape else update.T
