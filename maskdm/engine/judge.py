"""Samples of every snapshot of an arm against real images.

A snapshot's row is kept in the work folder as soon as it is known, so that a kill costs one snapshot at most. Several
processes draw and look at a share of the samples each; the main one measures, holds the work folder and writes.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskdm.config.reading import flat
from maskdm.engine.project import Project, exclusive, identity, now, run_params
from maskdm.evaluation.extractors import Extractor, extract, load_extractor
from maskdm.evaluation.metrics import Reference, ReferenceKey, compare, load_reference
from maskdm.evaluation.sampling import sample_images
from maskdm.networks.uvit import UViT
from maskdm.runtime.files import reading, write_atomically
from maskdm.runtime.paths import REFERENCE, ROOT, weights_folder, work_folder
from maskdm.runtime.processes import ALONE, Processes
from maskdm.runtime.seeding import generator
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import write_record
from maskdm.training.checkpoint import load_snapshot, network_sha256, snapshot_folder
from maskdm.training.objective import noise_schedule
from maskdm.training.plan import PhasePlan, arm_plans

GRID_SIDE = 8  # samples a side of the grid that is kept

Row = dict[str, Any]
LogHistory = Callable[[list[Row]], None]


def run_stage(project: Project, arm: str) -> None:
    """Evaluate one arm. Goes on after a kill."""
    started_at = now()
    params, snapshots = project.params, find_snapshots(project, arm)
    settings = params.model_dump(include={"sampling", "evaluation"})
    run_identity = identity(
        project,
        ["evaluate", arm, params.seed, settings],
        {share: network_sha256(load_snapshot(folder, project.device)) for share, folder in snapshots.items()},
    )
    record = project.record(
        "evaluate", arm, arm, run_identity, run_params(project, params.arms[arm].pretrain, ()) | flat(settings)
    )
    work = work_folder("evaluate", arm, run_identity)
    judge = Judge.open(project, arm, work)
    if not project.processes.is_main:
        judge_all(judge, snapshots, log=lambda _: None)
        return
    with exclusive(work), mlflow_store.live_run(ROOT, record) as run:
        history, seconds = judge_all(judge, snapshots, run.log_history)
        machine = project.machine(started_at, sum(seconds), len(history) * params.evaluation.samples, seconds)
        summary = {name: history[-1][name] for name in ("images_seen", "train_flops", *judge.metrics)}
        out = save_samples(arm, work)
        write_record(ROOT, replace(record, summary=summary, history=history), machine)
        run.log_machine(machine)
        run.log_artifact(out / "grid.png")
    shutil.rmtree(work.parent, ignore_errors=True)


def judge_all(judge: "Judge", snapshots: dict[float, Path], log: LogHistory) -> tuple[list[Row], list[float]]:
    """The row of every snapshot and the seconds each took; on other processes than the main one, of no meaning."""
    history: list[Row] = []
    seconds: list[float] = []
    for share, folder in snapshots.items():
        row, took = cached(judge.work / f"{share}.json", partial(judge, share, folder), judge.project.processes)
        history.append(row)
        seconds.append(took)
        log(history)
    return history, seconds


def find_snapshots(project: Project, arm: str) -> dict[float, Path]:
    """Share of the budget -> folder with the weights. Early shares may lie in the arm's pre-training."""
    stages = (("finetune", arm), ("pretrain", project.params.arms[arm].pretrain))
    found: dict[float, Path] = {}
    for share in project.params.budget.snapshots:
        if share == 1:
            found[share] = weights_folder("finetune", arm)
            continue
        folders = [snapshot_folder(ROOT / "runs" / stage / key, share) for stage, key in stages]
        found[share] = next((folder for folder in folders if folder.is_dir()), folders[0])
    return found


@dataclass(frozen=True)
class Judge:
    """Samples a snapshot of an arm and compares the samples with real images."""

    project: Project
    plans: tuple[PhasePlan, ...]  # of the whole arm
    extractor: Extractor
    reference: Reference
    work: Path  # where the last snapshot's first samples go

    @classmethod
    def open(cls, project: Project, arm: str, work: Path) -> "Judge":
        """Load the extractor and the reference.

        Raises:
            MaskDMError: one of them is missing or is not what the settings ask for.
        """
        params = project.params
        plans = arm_plans(params, project.recipe, arm)
        extractor = load_extractor(params.evaluation, project.device)
        key = ReferenceKey.of(extractor, project.data.info["sha256"], params.evaluation)
        return cls(project, plans, extractor, load_reference(REFERENCE, key), work)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what is measured."""
        return (self.extractor.metric_name, "kid", "precision", "recall")

    def __call__(self, share: float, folder: Path) -> Row:
        """The row of the record for the snapshot in `folder`, taken at `share` of the budget; {} on other processes."""
        params, processes = self.project.params, self.project.processes
        own = range(params.evaluation.samples)[processes.share(params.evaluation.samples, "evaluation.samples")]
        images = self.sample(load_snapshot(folder, self.project.device), own)
        features = processes.gather(extract(self.extractor, images, params.evaluation.batch_size))
        first = processes.gather(images[: max(0, GRID_SIDE**2 - own.start)])
        if not processes.is_main:
            return {}
        if share == 1:
            write_atomically(self.work / "samples.npy", lambda file: np.save(file, first))
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
            "weights": "ema",
            "extractor": self.extractor.name,
            "input_size": self.extractor.input_size,
        }

    def sample(self, network: UViT, indices: range) -> np.ndarray:
        """The samples `indices`, uint8 `[n, C, H, W]`."""
        params, recipe = self.project.params, self.project.recipe
        schedule = noise_schedule(recipe.num_train_timesteps, recipe.beta_schedule, recipe.prediction_type)
        labels = sample_labels(self.project) if network.num_classes is not None else None
        return sample_images(network, schedule, params.sampling, indices, params.seed, labels)


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


def cached(path: Path, compute: Callable[[], Row], processes: Processes = ALONE) -> tuple[Row, float]:
    """What `compute()` returned and the seconds it took, from `path` if an earlier, killed run wrote it.

    All processes compute, or none; the main one keeps the row, the others have none.
    """
    (missing,) = processes.agree(not path.is_file())
    if missing:
        started = time.perf_counter()
        row = compute()
        if processes.is_main:
            content = json.dumps({"row": row, "seconds": time.perf_counter() - started})
            write_atomically(path, lambda file: file.write(content.encode()))
    if not processes.is_main:
        return {}, 0.0
    with reading(path, "delete it, and the same command judges the snapshot again"):
        stored = json.loads(path.read_bytes())
        return stored["row"], stored["seconds"]


def save_samples(arm: str, work: Path) -> Path:
    """The kept samples as an array, for the report, and as a picture, for MLflow; returns their folder."""
    out = ROOT / "runs" / "evaluate" / arm
    out.mkdir(parents=True, exist_ok=True)
    with reading(path := work / "samples.npy", f"delete {work}, and the same command draws them again"):
        images = np.load(path)
    write_atomically(out / "samples.npy", lambda file: np.save(file, images))
    write_atomically(out / "grid.png", lambda file: as_grid(images).save(file, format="PNG"))
    return out


def as_grid(images: np.ndarray) -> Image.Image:
    """uint8 `[n, C, H, W]` -> one picture, `GRID_SIDE` images a row, enlarged without smoothing to about 64 pixels."""
    zoom = max(1, 64 // images.shape[-1])
    rows = [np.concatenate(list(images[i : i + GRID_SIDE]), axis=-1) for i in range(0, len(images), GRID_SIDE)]
    grid = np.concatenate([row for row in rows if row.shape == rows[0].shape], axis=-2).transpose(1, 2, 0)
    grid = grid.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
