"""The two passes of a training step: losses forward, gradients backward. On a GPU they are recorded once and replayed.

A small step starts 1,800 kernels, which takes the CPU 40 ms; the GPU computes for 17 of them (reports/gpu.md). A CUDA
graph starts all of them at once: the same kernels on the same numbers. That works as every step of a phase has the
same shapes: the masks of a phase always keep as many tokens.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from maskdm.training.views import Drawn

LARGE_STEP = 2e13  # FLOPs: from here on the GPU computes longer than the CPU takes to start its kernels
WARM_UP = 3  # passes before the recording, in which libraries choose kernels and take memory


class Passes(Protocol):
    """Fills the gradients of all weights, and returns the loss of what a step shows, a scalar."""

    def __call__(self, drawn: Sequence[Drawn]) -> Tensor:
        """One step's."""


def make_passes(replica: nn.Module, device: torch.device, step_flops: float, processes: int) -> Passes:
    """Those of a phase: replayed where that is faster. Gradients that processes average cannot be recorded.

    Args:
        replica: a `Trainee`, or what averages its gradients over the processes.
        device: that it is on.
        step_flops: of one step.
        processes: how many share it.
    """
    eager = EagerPasses(replica, device)
    if device.type == "cuda" and processes == 1 and step_flops < LARGE_STEP:
        return RecordedPasses(eager, replica.parameters())
    return eager


class EagerPasses:
    """Operation by operation. On a GPU in bfloat16, the weights in float32."""

    def __init__(self, replica: nn.Module, device: torch.device) -> None:
        self.replica, self.device = replica, device

    def __call__(self, drawn: Sequence[Drawn]) -> Tensor:
        """As in `Passes`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            losses = self.replica([one.view for one in drawn])
        loss = torch.stack([one.minimised(own) for one, own in zip(drawn, losses, strict=True)]).sum()
        loss.backward()
        return loss.detach()


class RecordedPasses:
    """One CUDA graph of both passes, recorded with the first step's shapes.

    It reads and writes always the same memory: inputs are copied there, and gradients and the loss are found there.
    """

    def __init__(self, eager: EagerPasses, weights: Iterable[nn.Parameter]) -> None:
        self.eager, self.weights = eager, list(weights)
        self.replay: Callable[[], None] | None = None
        self.inputs: list[Drawn] = []
        self.gradients: list[Tensor | None] = []
        self.loss = torch.empty(0)

    def __call__(self, drawn: Sequence[Drawn]) -> Tensor:
        """As in `Passes`."""
        if not self.replay:
            self.replay = self._record(drawn)
        torch._foreach_copy_(_tensors(self.inputs), _tensors(drawn))
        self.replay()
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            weight.grad = gradient
        return self.loss.clone()

    def _record(self, drawn: Sequence[Drawn]) -> Callable[[], None]:
        self.inputs = copy.deepcopy(list(drawn))
        beside = torch.cuda.Stream(self.eager.device)
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self.eager(self.inputs)
                for weight in self.weights:
                    weight.grad = None
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread reads images meanwhile
            self.loss = self.eager(self.inputs)
        self.gradients = [weight.grad for weight in self.weights]
        return graph.replay


def _tensors(drawn: Iterable[Drawn]) -> list[Tensor]:
    """All that differs from step to step, in a fixed order."""
    values = [value for one in drawn for value in (*vars(one.view).values(), one.weights)]
    return [value for value in values if isinstance(value, Tensor)]
