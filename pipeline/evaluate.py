"""DVC stage `evaluate@<arm>`: samples of every snapshot of an arm against real images.

A snapshot's row is kept in the work folder as soon as it is known, so that a kill costs one snapshot at most.
"""

import json
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskdm import tracking
from maskdm.checkpoint import load_snapshot, snapshot_folder
from maskdm.compute import PhasePlan, peak_memory_bytes, plan_finetune
from maskdm.diffusion import noise_schedule
from maskdm.errors import exit_with_one_line
from maskdm.extractors import Extractor, extract, load_extractor
from maskdm.files import file_sha256, write_atomically
from maskdm.metrics import Reference, ReferenceKey, compare, load_reference
from maskdm.records import Machine, Record, dvc_state, git_state, hardware, write_record
from maskdm.sampling import sample_images
from maskdm.seeding import generator
from pipeline.common import Project, chosen_key, identity, run_params
from pipeline.paths import REFERENCE, ROOT, weights_folder, work_folder

# The library files whose code decides the result: dvc.yaml lists the same ones as dependencies.
CODE = (
    "checkpoint",
    "compute",
    "config",
    "datasets/prepared",
    "device",
    "diffusion",
    "extractors",
    "files",
    "metrics",
    "patches",
    "sampling",
    "seeding",
    "uvit",
)
GRID_SIDE = 8  # samples a side of the grid that is kept


def main() -> None:
    """Judge the arm's snapshots, write `runs/evaluate/<arm>/` and `records/evaluate/<arm>.json`."""
    with exit_with_one_line():
        project = Project.open()
        run_stage(project, chosen_key(sys.argv, project.params.arms))


def run_stage(project: Project, arm: str) -> None:
    """Evaluate one arm. Goes on after a kill."""
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    params = project.params
    pretrain = params.arms[arm].pretrain
    plans = (*project.plans(pretrain), plan_finetune(params, project.recipe, arm))
    snapshots = find_snapshots(project, arm)
    run_identity = identity(
        project,
        CODE,
        ["evaluate", arm, params.seed, params.sampling.model_dump(), params.evaluation.model_dump()],
        {share: weights_sha256(folder) for share, folder in snapshots.items()},
    )
    work = work_folder("evaluate", arm, run_identity)
    run_settings = {"arm": arm, **run_params(project, pretrain, ())}
    extractor = load_extractor(params.evaluation, project.device)
    reference = load_reference(
        REFERENCE, ReferenceKey.of(extractor, project.data.info["sha256"], params.evaluation.reference)
    )
    with tracking.live_run(
        ROOT, stage="evaluate", key=arm, arm=arm, identity=run_identity, params=run_settings, data=project.data_record()
    ) as run:
        history: list[dict[str, Any]] = []
        seconds: list[float] = []
        for share, folder in snapshots.items():
            row, took = cached(
                work / f"{share}.json",
                lambda s=share, f=folder: judge(project, plans, s, f, extractor, reference, work),
            )
            history.append(row)
            seconds.append(took)
            run.log_history(history)
        out = save_samples(arm, work)
        run.log_artifact(out / "grid.png")
        metrics = (extractor.metric_name, "kid", "precision", "recall", "images_seen", "train_flops")
        record = Record(
            stage="evaluate",
            key=arm,
            arm=arm,
            identity=run_identity,
            params=run_settings,
            data=project.data_record(),
            summary={name: history[-1][name] for name in metrics},
            history=history,
        )
        machine = Machine(
            started_at=started_at,
            git=git_state(ROOT),
            dvc=dvc_state(ROOT),
            hardware=hardware(project.device),
            train_seconds=sum(seconds),
            images_per_second=params.evaluation.samples * len(history) / sum(seconds),
            peak_memory_bytes=peak_memory_bytes(project.device),
            seconds=seconds,
        )
        write_record(ROOT, record, machine)
        run.log_machine(machine)
    shutil.rmtree(work.parent, ignore_errors=True)


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


def judge(
    project: Project,
    plans: tuple[PhasePlan, ...],
    share: float,
    folder: Path,
    extractor: Extractor,
    reference: Reference,
    work: Path,
) -> dict[str, Any]:
    """Sample one snapshot and compare: a row of the record. The last snapshot's first samples go to `work`."""
    params, recipe = project.params, project.recipe
    network = load_snapshot(folder, project.device)
    schedule = noise_schedule(recipe.num_train_timesteps, recipe.beta_schedule, recipe.prediction_type)
    labels = sample_labels(project) if network.num_classes is not None else None
    images = sample_images(network, schedule, params.sampling, params.evaluation.samples, params.seed, labels)
    if share == 1:
        write_atomically(work / "samples.npy", lambda file: np.save(file, images[: GRID_SIDE**2]))
    features = extract(extractor, images, params.evaluation.batch_size)
    images_seen, train_flops = position(plans, share)
    return {
        "fraction": share,
        "images_seen": images_seen,
        "train_flops": train_flops,
        **compare(features, reference, params.evaluation, params.seed),
        "samples": params.evaluation.samples,
        "reference": params.evaluation.reference,
        "sampler": params.sampling.sampler,
        "num_inference_steps": params.sampling.num_inference_steps,
        "eta": params.sampling.eta,
        "weights": "ema",
        "extractor": extractor.name,
        "input_size": extractor.input_size,
    }


def position(plans: tuple[PhasePlan, ...], share: float) -> tuple[int, float]:
    """Images seen and FLOPs spent when the snapshot at `share` of the budget was taken."""
    for plan in plans:
        for step, snapshot in plan.snapshot_steps.items():
            if snapshot == share:
                return plan.images_seen(step), plan.train_flops(step)
    return plans[-1].images_seen(plans[-1].steps), plans[-1].train_flops(plans[-1].steps)


def sample_labels(project: Project) -> Tensor:
    """Classes of the images to draw: those of random training images, so that they are as frequent as in the data."""
    labels = torch.from_numpy(np.asarray(project.data.train_labels))
    random = generator("cpu", project.params.seed, "labels")
    return labels[torch.randint(len(labels), (project.params.evaluation.samples,), generator=random)]


def cached(path: Path, compute: Any) -> tuple[dict[str, Any], float]:
    """What `compute()` returned and the seconds it took, from `path` if an earlier, killed run wrote it."""
    if not path.is_file():
        started = time.perf_counter()
        row = compute()
        content = json.dumps({"row": row, "seconds": time.perf_counter() - started})
        write_atomically(path, lambda file: file.write(content.encode()))
    stored = json.loads(path.read_bytes())
    return stored["row"], stored["seconds"]


def save_samples(arm: str, work: Path) -> Path:
    """The kept samples as an array, for the report, and as a picture, for MLflow; returns their folder."""
    out = ROOT / "runs" / "evaluate" / arm
    out.mkdir(parents=True, exist_ok=True)
    images = np.load(work / "samples.npy")
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


def weights_sha256(folder: Path) -> str:
    """A hash of the weights saved in `folder`."""
    return "".join(file_sha256(path) for path in sorted(folder.glob("*.safetensors")))


if __name__ == "__main__":
    main()
