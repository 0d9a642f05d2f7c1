"""Samples of every snapshot of a trial against real images.

A snapshot's row is kept in the work folder as soon as it is known, so that a kill costs one snapshot at most. Several
processes draw and look at a share of the samples each; the main one measures, holds the work folder and writes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskdm.config.params import Params, Sampling
from maskdm.config.recipe import Recipe
from maskdm.engine.project import Project
from maskdm.evaluation.extractors import Extractor, extract, load_extractor
from maskdm.evaluation.metrics import Reference, ReferenceKey, compare, load_reference
from maskdm.evaluation.pictures import GRID_SIDE, as_grid
from maskdm.evaluation.sampling import sample_images
from maskdm.networks.network import Network
from maskdm.runtime.files import reading, write_atomically
from maskdm.runtime.paths import samples_file
from maskdm.runtime.processes import ALONE, Processes
from maskdm.runtime.progress import Reporter, Status
from maskdm.runtime.seeding import generator
from maskdm.training.checkpoint import load_snapshot
from maskdm.training.plan import PhasePlan, arm_plans, plan_finetune

AS_LONG = 1.6  # with looking at the samples; of the default's extractor

Row = dict[str, Any]
LogHistory = Callable[[list[Row]], None]


def judge_all(judge: "Judge", snapshots: dict[float, Path], log: LogHistory) -> list[Row]:
    """The row of every snapshot, share of the budget -> folder; on other processes than the main one, of no meaning."""
    history: list[Row] = []
    reporter, whole = Reporter(), judging_flops(judge.project.params, judge.project.recipe)
    for done, (share, folder) in enumerate(snapshots.items()):
        reporter.report(Status(whole * done / len(snapshots)))
        path = judge.work / "judged" / f"{share}.json"
        history.append(cached(path, partial(judge, share, folder), judge.project.processes))
        log(history)
    return history


def judging_flops(params: Params, recipe: Recipe) -> float:
    """About what judging all snapshots of a trial takes, in FLOPs of training: for progress bars, not for a budget."""
    dense = plan_finetune(params, recipe, params.baseline).flops_per_image
    forward = passes_a_sample(params.sampling) * dense / 3
    return len(params.budget.snapshots) * params.evaluation.samples * AS_LONG * forward


def passes_a_sample(sampling: Sampling) -> int:
    """How often a sample passes the network: guidance predicts twice a step."""
    return sampling.num_inference_steps * (1 if sampling.guidance_scale == 1 else 2)


@dataclass(frozen=True)
class Judge:
    """Samples a snapshot of a trial and compares the samples with real images."""

    project: Project
    plans: tuple[PhasePlan, ...]  # of the whole arm
    extractor: Extractor
    reference: Reference
    work: Path  # where the first samples of each snapshot go

    @classmethod
    def open(cls, project: Project, work: Path) -> "Judge":
        """Load the extractor and the reference. The project has the settings of one trial.

        Raises:
            MaskDMError: one of them is missing or is not what the settings ask for.
        """
        params = project.params
        plans = arm_plans(params, project.recipe, params.arm)
        extractor = load_extractor(params.evaluation, project.device)
        key = ReferenceKey.of(extractor, project.data.info["sha256"], params.evaluation)
        return cls(project, plans, extractor, load_reference(project.reference, key), work)

    def __call__(self, share: float, folder: Path) -> Row:
        """The row of the record for the snapshot in `folder`, taken at `share` of the budget; {} on other processes."""
        params, processes = self.project.params, self.project.processes
        own = range(params.evaluation.samples)[processes.share(params.evaluation.samples, "evaluation.samples")]
        images = self.sample(load_snapshot(folder, self.project.device), own)
        features = processes.gather(extract(self.extractor, images, params.evaluation.batch_size))
        first = processes.gather(images[: max(0, GRID_SIDE**2 - own.start)])
        if not processes.is_main:
            return {}
        write_atomically(self.work / samples_file(share), lambda file: np.save(file, first))
        images_seen, train_flops = position(self.plans, share)
        return {
            "fraction": share,
            "images_seen": images_seen,
            "train_flops": train_flops,
            **compare(features, self.reference, params.evaluation, params.seed),
            "samples": params.evaluation.samples,
            "reference": params.evaluation.reference,
            "sampler": params.sampling.sampler,
            "num_inference_steps": params.sampling.num_inference_steps,
            "eta": params.sampling.eta,
            "guidance_scale": params.sampling.guidance_scale,
            "weights": "ema",
            "extractor": self.extractor.name,
            "input_size": self.extractor.input_size,
        }

    def sample(self, network: Network, indices: range) -> np.ndarray:
        """The samples `indices`, uint8 `[n, C, H, W]`."""
        params, objective = self.project.params, self.project.recipe.objective
        labels = sample_labels(self.project) if network.num_classes is not None else None
        return sample_images(network, objective, params.sampling, indices, params.seed, labels)


def position(plans: tuple[PhasePlan, ...], share: float) -> tuple[int, float]:
    """Images seen and FLOPs spent when the snapshot at `share` of the budget was taken."""
    for plan in plans:
        for step, snapshot in plan.snapshot_steps.items():
            if snapshot == share:
                return plan.images_seen(step), plan.train_flops(step)
    return plans[-1].images_seen(plans[-1].steps), plans[-1].train_flops(plans[-1].steps)


def sample_labels(project: Project) -> Tensor:
    """Classes of the images to draw: those of random training images, so that they are as frequent as in the data."""
    labels = torch.from_numpy(np.array(project.data.train_labels))
    random = generator("cpu", project.params.seed, "labels")
    return labels[torch.randint(len(labels), (project.params.evaluation.samples,), generator=random)]


def cached(path: Path, compute: Callable[[], Row], processes: Processes = ALONE) -> Row:
    """What `compute()` returned, from `path` if an earlier, killed run wrote it.

    All processes compute, or none; the main one keeps the row, the others have none.
    """
    (missing,) = processes.agree(not path.is_file())
    if missing:
        text = json.dumps(compute())
        content = f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n".encode()
        if processes.is_main:
            write_atomically(path, lambda file: file.write(content))
    if not processes.is_main:
        return {}
    with reading(path, "delete it, and the same command judges the snapshot again"):
        text, digest = path.read_text(encoding="utf-8").splitlines()
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise ValueError("damaged")
        row: Row = json.loads(text)
        return row


def save_samples(out: Path, work: Path, shares: Iterable[float]) -> None:
    """The kept samples of each snapshot as an array, for the reports, and the last ones as a picture, for MLflow."""
    for share in shares:
        with reading(path := work / samples_file(share), f"delete {work}, and the same command draws them again"):
            images = np.load(path)
        write_atomically(out / path.name, partial(np.save, arr=images))
    write_atomically(out / "grid.png", lambda file: as_grid(images).save(file, format="PNG"))
