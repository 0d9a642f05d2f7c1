"""The one training loop: pre-training, fine-tuning and the baseline differ in their `PhasePlan` alone.

Order of images, masks, time steps and noise are functions of (seed, phase, step), so a run that was killed goes on
from its last checkpoint with the same command and ends with the weights of an uninterrupted one. Several processes
draw the same whole batch, and each computes the gradient of its share: together they take the steps of one process.
"""

import copy
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from tqdm import tqdm

from maskdm.datasets.prepared import PreparedData, read, sample_order
from maskdm.methods.method import Trainee
from maskdm.networks.network import Network
from maskdm.networks.patches import patchify
from maskdm.runtime.errors import DivergedError, MaskDMError
from maskdm.runtime.interrupts import StopRequest
from maskdm.runtime.processes import ALONE, Processes
from maskdm.runtime.progress import Reporter, Status, bar_interval
from maskdm.runtime.seeding import generator
from maskdm.training.checkpoint import load_checkpoint, save_checkpoint, save_snapshot, snapshot_folder
from maskdm.training.heldout import HeldoutLoss
from maskdm.training.objective import Objective
from maskdm.training.optimizers import give_moments, learning_rate, make_optimizers, moments_of, update
from maskdm.training.passes import make_passes
from maskdm.training.plan import PhasePlan, check_planned_flops
from maskdm.training.views import Views, to_unit_range

CHECKPOINT_SECONDS = 30.0  # the most work that a kill can cost
TOKENS_A_PASS = 2**14  # of the held-out loss: more are no faster on a GPU, and with 4,096 an image they take 60 GB

Row = dict[str, float]
State = dict[str, Any]  # `trainee` and `ema`: state dicts; `moments` of the optimizers by weight; `method`: its name
LogHistory = Callable[[list[Row]], None]


class Progress(BaseModel):
    """How far a phase is, as its checkpoint says beside the `State`."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    step: int = Field(ge=0)
    history: list[Row]
    seconds: list[float]
    train_seconds: float
    losses: list[Tensor]
    grad_norms: list[Tensor]


@dataclass(frozen=True)
class PhaseResult:
    """What a finished phase leaves behind."""

    network: Network  # EMA weights
    state: State  # for a phase that goes on from more than those
    history: list[Row]  # one row per measured held-out loss
    seconds: list[float]  # training time at each row, from the start of the phase, without measuring and saving


class BatchLoader:
    """Reads this process's `share` of the next step's batch from disk while the current step trains."""

    def __init__(self, data: PreparedData, plan: PhasePlan, seed: int, share: slice, with_labels: bool) -> None:
        self.data, self.plan, self.seed, self.share, self.with_labels = data, plan, seed, share, with_labels
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[tuple[Tensor, Tensor | None]]] | None = None

    def __call__(self, step: int) -> tuple[Tensor, Tensor | None]:
        """The share of `step` (from 1): uint8 images `[b, C, H, W]` and, if asked for, labels `[b]`."""
        ready = self._ahead[1] if self._ahead and self._ahead[0] == step else self._pool.submit(self._read, step)
        self._ahead = (step + 1, self._pool.submit(self._read, step + 1)) if step < self.plan.steps else None
        return ready.result()

    def close(self) -> None:
        """Stop the reading thread."""
        self._pool.shutdown(cancel_futures=True)

    def _read(self, step: int) -> tuple[Tensor, Tensor | None]:
        start = self.plan.images_seen(step - 1) + self.share.start
        indices = sample_order(self.seed, len(self.data.train), start, self.share.stop - self.share.start)
        images = torch.from_numpy(read(self.data.train, indices))
        if not self.with_labels or self.data.train_labels is None:
            return images, None
        return images, torch.from_numpy(self.data.train_labels[indices])


class PhaseTrainer:
    """Trains `network` in place through one phase.

    Args:
        network: on the device to train on; it holds the weights to start from, if there is no `before`.
        objective: what noise is added, and what the network predicts.
        data: the prepared images.
        plan: the phase.
        heldout_loss: measured on the EMA weights at the steps that the plan names.
        seed: of everything that is drawn.
        folder: for the checkpoint and the snapshots (`snapshots/<permille of the budget>`).
        log: called with all rows so far whenever they are safe in a checkpoint.
        watch: called with each row as it is measured, once more after a resume; may raise to end the training.
        processes: those that share each batch; all of them train, the main one writes.
        before: the state of the phase before, if the plan goes on from that.
    """

    def __init__(
        self,
        network: Network,
        objective: Objective,
        data: PreparedData,
        plan: PhasePlan,
        heldout_loss: Callable[[nn.Module], float],
        seed: int,
        folder: Path,
        log: LogHistory,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        processes: Processes = ALONE,
        watch: Callable[[Row], None] = lambda _: None,
        before: State | None = None,
    ) -> None:
        self.network, self.objective, self.data, self.plan = network, objective, data, plan
        self.heldout_loss, self.seed, self.folder, self.log, self.watch = heldout_loss, seed, folder, log, watch
        self.checkpoint_seconds = checkpoint_seconds
        self.device = next(network.parameters()).device
        self.processes = processes
        self.share = processes.share(plan.batch_size, "batch_size")
        self.views = Views(plan, network, objective, self.device, self.share, processes.count)
        self.trainee = Trainee(network.requires_grad_(True), plan.method, plan.positions)
        replica = processes.replicate(self.trainee)  # its backward pass averages gradients over the processes
        self.passes = make_passes(replica, network, self.device, plan, processes.count)
        self.ema = copy.deepcopy(self.trainee).eval().requires_grad_(False)
        self.optimizers = make_optimizers(network, plan.optimisation, self.trainee.weights.values())
        self.step = 0
        self.history: list[Row] = []
        self.seconds: list[float] = []
        self._train_seconds = 0.0
        self._losses: list[Tensor] = []  # of the steps since the last row; read only when a row or checkpoint is due
        self._grad_norms: list[Tensor] = []
        if before:
            self._go_on_from(before)

    @property
    def checkpoint_path(self) -> Path:
        """The whole state of this phase."""
        return self.folder / f"phase{self.plan.index}.pt"

    def run(self) -> PhaseResult:
        """Train to the end of the phase, from its checkpoint if there is one.

        Raises:
            DivergedError: the loss is not finite.
            MaskDMError: a file cannot be written, the checkpoint is corrupt, or a step costs not what the plan says.
            KeyboardInterrupt: on Ctrl-C or SIGTERM, once the state is saved.
        """
        if state := load_checkpoint(self.checkpoint_path, self.device):
            self.load_state_dict(state)
        self._require_same_step()
        check_planned_flops(self.trainee, self.plan, self.device)
        self._settle_replica()
        with_labels = self.network.num_classes is not None
        loader = BatchLoader(self.data, self.plan, self.seed, self.share, with_labels)
        try:
            with StopRequest() as stop, self._progress_bar() as bar:
                self._train(loader, stop, bar)
        finally:
            loader.close()
        if self.processes.is_main:
            self.log(self.history)
        for trainee in (self.trainee, self.ema):
            self.plan.method.carry_over(trainee.network, trainee.weights)
        return PhaseResult(self.ema.network, self._state(), self.history, self.seconds)

    def train_step(self, images: Tensor, labels: Tensor | None) -> None:
        """One optimiser step on this process's share, uint8 `[b, C, H, W]`, of the batch of step `self.step + 1`."""
        self.step += 1
        random = generator(self.device, self.seed, "train", self.plan.index, self.step)
        images = images.to(self.device, non_blocking=True)
        labels = None if labels is None else labels.to(self.device, non_blocking=True)
        drawn = self.views(images, labels, random)
        self._losses.append(self.processes.mean(self.passes(drawn)))
        place = self.plan.schedule_place(self.step)
        self._grad_norms.append(update(self.trainee, self.ema, self.optimizers, self.plan.optimisation, *place))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed phase needs; what is drawn at random needs nothing."""
        return {
            **self._state(),
            "step": self.step,
            "history": self.history,
            "seconds": self.seconds,
            "train_seconds": self._train_seconds,
            "losses": self._losses,
            "grad_norms": self._grad_norms,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`.

        Raises:
            MaskDMError: the state is of another network or another version.
        """
        try:
            _require_progress(state, self.plan.steps)
            self._load(state)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise MaskDMError(
                f"{self.checkpoint_path}: does not fit this network ({' '.join(str(error).split())}); "
                "delete it to start this phase again"
            ) from error
        self.step, self.history, self.seconds = state["step"], state["history"], state["seconds"]
        self._train_seconds, self._losses, self._grad_norms = (
            state["train_seconds"],
            state["losses"],
            state["grad_norms"],
        )

    def _state(self) -> State:
        return {
            "trainee": self.trainee.state_dict(),
            "ema": self.ema.state_dict(),
            "moments": moments_of(self.optimizers, dict(self.trainee.named_parameters())),
            "method": self.plan.method.name,
        }

    def _load(self, state: State) -> None:
        for module, weights in ((self.trainee, state["trainee"]), (self.ema, state["ema"])):
            module.load_state_dict(weights)
            if spoilt := [name for name, weight in module.named_parameters() if not torch.isfinite(weight).all()]:
                raise ValueError(f"{spoilt[0]} is not finite")
        # Moments only: weight decay and the like are this phase's own.
        give_moments(self.optimizers, dict(self.trainee.named_parameters()), state["moments"])

    def _go_on_from(self, before: State) -> None:
        """Begin with the state of the phase before. What another method has added there came to an end with it."""
        own = self.trainee.state_dict()
        if before["method"] == self.plan.method.name and _shapes(before["trainee"]) == _shapes(own):
            self._load(before)
            return

        def of_both(state: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in state.items() if name.startswith("network.")}

        self._load(
            {
                "trainee": own | of_both(before["trainee"]),
                "ema": own | of_both(before["ema"]),
                "moments": of_both(before["moments"]),
            }
        )

    def _train(self, loader: BatchLoader, stop: StopRequest, bar: "tqdm[Any]") -> None:
        self.network.train()
        reporter = Reporter()
        started = saved = time.perf_counter()
        while self.step < self.plan.steps:
            self.train_step(*loader(self.step + 1))
            bar.update(self.plan.batch_size)
            if reporter.is_due:
                loss = self.history[-1]["loss"] if self.history else None  # of this step it would wait for the device
                reporter.report(Status(self.plan.train_flops(self.step), self.plan.images_seen(self.step), loss))
            due = self.step in self.plan.heldout_steps
            snapshot = self.plan.snapshot_steps.get(self.step)
            stopping, overdue = self.processes.agree(
                stop.requested, time.perf_counter() - saved > self.checkpoint_seconds
            )
            checkpoint = stopping or overdue or self.step == self.plan.steps
            if not (due or checkpoint or snapshot is not None):
                continue
            self._require_finite_losses()
            self._train_seconds += time.perf_counter() - started
            if due:
                self._add_row()
                bar.set_postfix(
                    loss=f"{self.history[-1]['loss']:.4f}", heldout=f"{self.history[-1]['heldout_loss']:.4f}"
                )
            if snapshot is not None and self.processes.is_main:
                save_snapshot(snapshot_folder(self.folder, snapshot), self._averaged(), self.objective.settings)
            if checkpoint:
                if self.processes.is_main:
                    save_checkpoint(self.checkpoint_path, self.state_dict())
                    self.log(self.history)
                saved = time.perf_counter()
                # None leaves before the state is safe, and a request that came while it was saved is not lost.
                (stopping,) = self.processes.agree(stop.requested)
            if stopping:
                raise KeyboardInterrupt(f"saved at step {self.step} of {self.plan.steps}; the same command goes on")
            started = time.perf_counter()

    def _add_row(self) -> None:
        self.history.append(
            {
                "step": self.step,
                "phase": self.plan.index,
                "images_seen": self.plan.images_seen(self.step),
                "train_flops": self.plan.train_flops(self.step),
                "loss": torch.stack(self._losses).mean().item(),
                "lr": learning_rate(self.plan.optimisation, *self.plan.schedule_place(self.step)),
                "grad_norm": torch.stack(self._grad_norms).mean().item(),
                "heldout_loss": self.heldout_loss(self._averaged()),
            }
        )
        self.seconds.append(self._train_seconds)
        self._losses, self._grad_norms = [], []
        self.watch(self.history[-1])

    def _averaged(self) -> Network:
        """The averaged weights as the phase would hand them over if it ended here."""
        if not self.ema.weights:
            return self.ema.network
        copied = copy.deepcopy(self.ema)
        self.plan.method.carry_over(copied.network, copied.weights)
        return copied.network

    def _settle_replica(self) -> None:
        """One backward pass for nothing.

        After its first one DDP sorts the gradients into other buckets, and with three processes or more the buckets
        decide in which order numbers are added: a resumed run would repeat the steps of a whole one to rounding only.
        """
        if self.processes.count == 1:
            return
        count, channels = self.share.stop - self.share.start, self.data.train.shape[1]
        rows, columns = (side * self.network.patch_size for side in self.network.grid)
        images = torch.zeros(count, channels, rows, columns, dtype=torch.uint8, device=self.device)
        labels = None if self.network.num_classes is None else torch.zeros(count, dtype=torch.long, device=self.device)
        drawn = self.views(images, labels, generator(self.device, self.seed, "settle"))
        self.passes(drawn)
        self.trainee.zero_grad()

    def _require_same_step(self) -> None:
        """Stop where some machine does not see the checkpoint that another goes on from."""
        steps = sorted(set(self.processes.gather(np.array([self.step])).tolist()))
        if len(steps) > 1:
            raise MaskDMError(
                f"{self.checkpoint_path}: processes would go on from different steps {steps}; allowed: one folder that "
                "all machines share"
            )

    def _require_finite_losses(self) -> None:
        """Stop before a spoilt state could be saved. Waits for the device, so only where something is saved."""
        if not self._losses:
            return
        losses = torch.stack(self._losses)
        if torch.isfinite(losses).all():
            return
        first = int((~torch.isfinite(losses)).nonzero()[0])
        kept = self.checkpoint_path if self.checkpoint_path.is_file() else "none was saved yet"
        raise DivergedError(
            f"the {self.plan.stage} loss became {losses[first].item()} at step {self.step - len(losses) + 1 + first} "
            f"of {self.plan.steps} (phase {self.plan.index}); last good checkpoint: {kept}; "
            "try a smaller lr, a larger batch_size or grad_clip"
        )

    def _progress_bar(self) -> "tqdm[Any]":
        less = f" {self.plan.method.name} {self.plan.removed:.1%}" if self.plan.removed else ""
        return tqdm(
            desc=f"{self.plan.stage}{less}",
            total=self.plan.steps * self.plan.batch_size,
            initial=self.step * self.plan.batch_size,
            unit="img",
            unit_scale=True,
            mininterval=bar_interval(),
        )


def _require_progress(state: dict[str, Any], steps: int) -> None:
    try:
        progress = Progress.model_validate(state)
    except ValidationError as error:
        raise ValueError(f"{error.errors()[0]['loc'][0]} is missing or damaged") from None
    if progress.step > steps:
        raise ValueError(f"it is at step {progress.step} of {steps}")


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def make_heldout_loss(
    network: Network,
    objective: Objective,
    data: PreparedData,
    num_images: int,
    seed: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> HeldoutLoss:
    """The held-out loss of the first `num_images` held-out images, the same for every run with this seed.

    Raises:
        MaskDMError: the data set holds out fewer images.
    """
    if num_images > len(data.heldout):
        raise MaskDMError(f"heldout.images={num_images}; allowed: at most {len(data.heldout)}, the images held out")
    images = torch.from_numpy(data.heldout[:num_images].copy()).to(device)
    labels = None
    if network.num_classes is not None and data.heldout_labels is not None:
        labels = torch.from_numpy(data.heldout_labels[:num_images].copy()).to(device)
    x_0 = to_unit_range(patchify(images, network.patch_size))
    batch_size = max(1, min(256, TOKENS_A_PASS // network.num_tokens))
    return HeldoutLoss(objective, x_0, labels, generator("cpu", seed, "heldout"), batch_size, processes)
