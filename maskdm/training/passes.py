"""The two passes of a training step: losses forward, gradients backward. On a GPU they are recorded once and replayed.

A small step starts 1,800 kernels, which takes the CPU 40 ms; the GPU computes for 17 of them (reports/gpu.md). A CUDA
graph starts all of them at once: the same kernels on the same numbers. That works as every step of a phase has the
same shapes: the masks of a phase always keep as many tokens. There a long phase compiles the network's blocks, too.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from maskdm.networks.network import Network
from maskdm.training.plan import PhasePlan
from maskdm.training.views import Drawn

# FLOPs of a phase: from here on compiling repays on a GPU. It takes 6 to 16 s for each kind of step, and saves a fifth
# of the time and more (reports/gpu.md). On a CPU it saves nothing (reports/performance.md).
LONG_PHASE = 2e17
MANY_SHAPES = 10_000  # more than any training has
# For one shape at a time: a phase has few. Deterministic: kernels are not chosen by what is fastest just now.
COMPILED: dict[str, Any] = {"dynamic": False, "options": {"deterministic": True}}

LARGE_STEP = 2e13  # FLOPs: from here on the GPU computes longer than the CPU takes to start its kernels
WARM_UP = 3  # passes before the recording, in which libraries choose kernels and take memory


class Passes(Protocol):
    """Fills the gradients of all weights, and returns the loss of what a step shows, a scalar."""

    def __call__(self, drawn: Sequence[Drawn]) -> Tensor:
        """One step's."""


def make_passes(replica: nn.Module, network: Network, device: torch.device, plan: PhasePlan, processes: int) -> Passes:
    """Those of a phase: compiled and replayed where that is faster. Gradients that processes average are not recorded.

    Args:
        replica: a `Trainee`, or what averages its gradients over the processes.
        network: the one that it trains.
        device: that it is on.
        plan: the phase.
        processes: how many share a step.
    """
    if device.type == "cuda" and plan.steps * plan.step_flops >= LONG_PHASE:
        compile_parts(network, device)
    eager = EagerPasses(replica, device)
    if device.type == "cuda" and processes == 1 and plan.step_flops < LARGE_STEP:
        return RecordedPasses(eager, replica.parameters())
    return eager


def compile_parts(network: Network, device: torch.device) -> None:
    """Let `torch.compile` fuse the parts of a network, in place, if this machine can. Its copies are not compiled."""
    if not can_compile(device):
        said = "note: not compiled, as torch.compile finds no working C++ compiler here; training goes on without"
        tqdm.write(said, file=sys.stderr)
        return
    torch._dynamo.config.suppress_errors = True  # what cannot be compiled stays eager
    # dynamo's own limit counts the shapes of all phases of a process, and leaves those beyond it eager. A training that
    # was resumed in a later phase has met fewer of them, and would compile what a whole one does not.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MANY_SHAPES
    for part in network.parts():
        part.compile(**COMPILED)


@cache
def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` works on this machine: it needs a C++ compiler, and on a GPU Triton."""
    try:
        with torch._dynamo.config.patch(suppress_errors=False):
            torch.compile(nn.GELU(), **COMPILED)(torch.ones(8, device=device))  # of which a kernel is made
    except Exception:  # of dynamo, of inductor or of the compiler
        return False
    return True


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
