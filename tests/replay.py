"""A small training, a held-out loss and samples, written by the main process: what several processes must repeat.

torchrun --standalone --nproc-per-node=3 -m tests.replay FOLDER
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.evaluation.sampling import sample_images
from maskdm.runtime.processes import Processes, started_processes
from maskdm.training.loop import LogHistory, PhaseTrainer, make_heldout_loss
from maskdm.training.objective import make_objective
from maskdm.training.plan import build_network, plan_pretrain
from tests.conftest import PARAMS, RECIPE, make_data

DTYPES = {"float64": torch.float64, "float32": torch.float32}
STEPS = 20


class WatchedImages(np.ndarray):
    """Images that remember which of them were read."""

    read: list[int]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, np.ndarray):
            self.read.extend(index.tolist())
        return np.asarray(super().__getitem__(index))


class WatchedData(PreparedData):
    """Data whose training images remember what was read of them."""

    @property
    def train(self) -> np.ndarray:
        images = super().train.view(WatchedImages)
        images.read = self.info["read"]
        return images


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Draw and compute everything in `dtype`, also where the library asks for float32."""
    to_float = torch.Tensor.float
    torch.set_default_dtype(dtype)
    torch.Tensor.float = lambda self: self.to(dtype)  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.Tensor.float = to_float  # type: ignore[method-assign]


def replay(folder: Path, dtype: torch.dtype, processes: Processes) -> dict[str, Any]:
    """Train for some steps with a batch that no two processes share evenly; what came of it, the same on all."""
    with computing_in(dtype):
        model = PARAMS["model"] | {"class_conditional": True}
        params, recipe = Params.model_validate(PARAMS | {"model": model}), Recipe.model_validate(RECIPE)
        torch.manual_seed(processes.rank)  # weights of its own on each process: the main one's must win
        network = build_network(params.model, params.data, num_classes=4)
        objective = make_objective(recipe.objective)
        plan = replace(
            plan_pretrain(params, recipe, "patch75")[0],
            batch_size=16,
            steps=STEPS,
            heldout_steps=(STEPS // 2, STEPS),
            snapshot_steps={},
            schedule_offset=0.0,
            schedule_steps=STEPS,
        )
        plan = replace(plan, optimisation=plan.optimisation.model_copy(update={"hflip": 0.5}))
        data = make_data()
        data = WatchedData(data.images, data.labels, {**data.info, "read": []})
        heldout = make_heldout_loss(network, objective, data, 33, 0, torch.device("cpu"), processes)
        logged: list[int] = []

        def trainer(name: str, log: LogHistory, checkpoint_seconds: float) -> PhaseTrainer:
            start = copy.deepcopy(network)
            return PhaseTrainer(
                start, objective, data, plan, heldout, 0, folder / name, log, checkpoint_seconds, processes
            )

        whole = trainer("whole", lambda rows: logged.append(len(rows)), 1e9)
        result = whole.run()
        read = list(data.info["read"])
        resumed = trainer("cut", lambda _: None, 0.0)
        with suppress(Killed):
            resumed.train_step = killed_at(STEPS // 3, resumed)  # type: ignore[assignment,method-assign]
            resumed.run()
        resumed = trainer("cut", lambda _: None, 1e9)
        resumed.run()
        own = range(7)[processes.share(7, "samples")]
        samples = sample_images(result.network, recipe.objective, params.sampling, own, 0, torch.arange(7) % 4)
    return {
        "weights": flat(whole.network),
        "resumed": flat(resumed.network),
        "ema": flat(result.network),
        "history": result.history,
        "read": processes.gather(np.array(read)).tolist(),
        "read_each": processes.gather(np.array([len(read)])).tolist(),
        "logged": logged,  # by this process itself
        "samples": torch.from_numpy(processes.gather(samples)),
    }


class Killed(BaseException):
    """Nothing runs after it but `finally`."""


def killed_at(step: int, trainer: PhaseTrainer) -> Callable[[torch.Tensor, torch.Tensor | None], None]:
    """The trainer's step, until it has done `step` of them."""
    train_step = trainer.train_step

    def dying(images: torch.Tensor, labels: torch.Tensor | None) -> None:
        if trainer.step == step:
            raise Killed
        train_step(images, labels)

    return dying


def flat(network: torch.nn.Module) -> torch.Tensor:
    """All weights in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with started_processes() as processes:
        for name, dtype in DTYPES.items():
            found = replay(Path(sys.argv[1]) / name, dtype, processes)
            torch.save(found, Path(sys.argv[1]) / f"{name}-{processes.rank}.pt")
