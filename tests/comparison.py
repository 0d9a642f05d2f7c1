"""A comparison without training: settings and records with known numbers, and a project that holds them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from maskdm.config.params import Params
from maskdm.config.study import Part, Study
from maskdm.reporting import analysed as analysing
from maskdm.reporting import analysis
from maskdm.runtime.paths import samples_file
from maskdm.tracking.records import OF_SAMPLES, Machine, Record, StepTimes, fold_records, write_record, write_step_times
from tests.imports import PROJECT

BUDGET = 36e12
POINTS = 40  # measurements of an arm, evenly spaced, a step each
SPEED = 80e9  # FLOPs a second
NOISE = {1: 1.0, 2: 1.05, 3: 0.97, 4: 1.01}  # of a seed, in all arms alike
# Final loss against scratch, the mean over the seeds, and how far the seeds are apart (see `make_records`).
REDUCTION = {"scratch": 1.0, "patch90": 0.95, "block90": 0.94, "crop3": 1.03, "control": 0.99}
SPREAD = 0.002
DISTANCE = {"scratch": 920.0, "patch90": 880.0, "block90": 842.0, "crop3": 990.0, "control": 910.0}
LATER = ("density", "coverage", "nearest")  # measures that old records lack
SETUP = {
    "samples": 1000,
    "reference": 10000,
    "sampler": "ddim",
    "num_inference_steps": 25,
    "eta": 0.0,
    "weights": "ema",
    "extractor": "effnet_lite0",
    "input_size": 96,
}
REFERENCE: dict[str, Any] = {
    "floor": {
        "fd_effnet_lite0": 80.25,
        "kid": -0.00012,
        "precision": 0.91,
        "recall": 0.9,
        "density": 0.99,
        "coverage": 0.24,
        "nearest": 0.92,
    },
    "floor_images": 1000,
    "floor_training_images": 0,
    "reference_images": 10000,
    "extractor": "effnet_lite0",
    "input_size": 96,
    "data_sha256": "ab" * 32,
}
DATASET: dict[str, Any] = {
    "name": "squares",
    "source": "made by the tests",
    "files": {},
    "train": 24,
    "heldout": 12,
    "shape": [1, 32, 32],
    "num_classes": None,
    "class_names": None,
    "sha256": "ab" * 32,
    "skipped": [],
}
RECIPE = {
    "objective": {
        "name": "ddpm",
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
    },
    "handover": "state",
    "optimisation": {
        "optimizer": "adamw",
        "lr": 2e-3,
        "betas": [0.9, 0.99],
        "weight_decay": 0.03,
        "grad_clip": 1.0,
        "warmup": 0.03,
        "decay": 0.3,
        "ema_horizon": 0.1,
        "hflip": 0.0,
        "min_snr_gamma": None,
    },
}


# --- a comparison without training ----------------------------------------------------------------------------


def settings() -> dict[str, Any]:
    dense = {"batch_size": 64}

    def arm(mask: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"mask": mask, "share": 0.25, "batch_size": 256}, dense]

    return {
        "seeds": list(NOISE),
        "recipe": "tuned",
        "data": {
            "name": "image_folder",
            "root": "pictures/squares",
            "image_size": 32,
            "channels": 1,
            "holdout": 12,
            "train_images": None,
        },
        "model": {"patch_size": 4, "embed_dim": 96, "depth": 5, "num_heads": 3, "class_conditional": False},
        "budget": {"train_flops": BUDGET, "snapshots": [0.2, 0.6, 1.0]},
        "heldout": {"images": 12, "points": 40},
        "arms": {
            "scratch": [dense],
            "patch90": arm({"strategy": "patch", "ratio": 0.9}),
            "block90": arm({"strategy": "block", "ratio": 0.9, "block": 2}),
            "crop3": arm({"strategy": "crop", "crop": 3}),
            "control": [{"share": 0.25, "batch_size": 32}, dense],
        },
        "baseline": "scratch",
        "controls": {"control": "block90"},
        "sampling": {"sampler": "ddim", "num_inference_steps": 25, "eta": 0.0, "batch_size": 250},
        "evaluation": {
            "extractor": "effnet_lite0",
            "input_size": 96,
            "weights": None,
            "batch_size": 64,
            "samples": 1000,
            "reference": 10000,
            "kid_subsets": 100,
            "kid_subset_size": 500,
            "nearest_k": 3,
        },
        "search": {
            "seed": 0,
            "train_flops": 1e12,
            "trials": 1,
            "parallel": 1,
            "space": {
                "strategies": ["patch"],
                "ratios": [0.5],
                "blocks": [2],
                "crops": [2],
                "max_phases": 1,
                "share": [0.1, 0.5],
                "batch_sizes": [32],
                "lr": [1e-3, 1e-2],
            },
            "finetune": dense,
            "confirm": 1,
            "confirm_seeds": [101],
        },
    }


def make_records(
    params: Params, reduction: dict[str, float] = REDUCTION, spread: float = SPREAD, name: str = "default"
) -> list[tuple[Record, Machine | None]]:
    """Records of smooth made-up curves: loss ~ compute^-1/4 in the last phase, times `level`."""
    made: list[tuple[Record, Machine | None]] = []
    for arm in params.arms:
        for index, seed in enumerate(params.seeds):
            level = reduction[arm] * NOISE[seed]
            if arm != params.baseline:
                level *= 1 + spread * (index - (len(params.seeds) - 1) / 2)  # of mean 1
            made.append(make_record(params, arm, seed, level, name))
    return made


def make_record(params: Params, arm: str, seed: int, level: float, name: str) -> tuple[Record, Machine]:
    phases = params.arms[arm]
    ends = np.cumsum([phase.share or 1.0 for phase in phases])
    history: list[dict[str, Any]] = []
    for share in np.arange(1, POINTS + 1) / POINTS:
        phase = int(np.searchsorted(ends * (1 + 1e-9), share))
        step = 1 + sum(row["phase"] == phase for row in history)
        spent = share * params.budget.train_flops
        loss = level * (0.0806 * (spent / BUDGET) ** -0.25 if phase == len(phases) - 1 else 0.3 * share**-0.1)
        row = {"step": step, "phase": phase, "images_seen": round(1e5 * share), "train_flops": spent}
        history.append(row | {"loss": loss, "heldout_loss": loss, "lr": 1e-3, "grad_norm": 1.0})
    distance = DISTANCE[arm] * level / REDUCTION[arm]
    judged = [snapshot(share, params.budget.train_flops, distance / share**0.5) for share in params.budget.snapshots]
    summary = {key: history[-1][key] for key in ("images_seen", "train_flops", "heldout_loss")}
    summary |= {key: judged[-1][key] for key in ("fd_effnet_lite0", *OF_SAMPLES)}
    data = {key: DATASET[key] for key in ("name", "sha256", "train", "heldout", "shape")}
    batches = " -> ".join(str(phase.batch_size) for phase in phases)
    settings = {"seed": seed, "batch_size": batches, "lr": 1e-3, "num_parameters": 604432}
    default = name == "default"
    key = f"{arm}/{seed}" if default else f"{name}/{arm}-{seed}"
    stage: Any = "default" if default else "study"
    record = Record(stage, key, arm, f"{arm}-{seed}", settings, data, summary, [*history, *judged])
    machine = Machine(
        started_at="2025-01-01T00:00:00+00:00",
        git={},
        dvc={},
        hardware={},
        stage_seconds=100.0,
        images_per_second=400.0,
        peak_memory_bytes=900_000_000,
        seconds=[float(place) for place in range(len(record.history))],  # wall times: no comparison reads them
    )
    return record, machine


def snapshot(share: float, budget: float, distance: float) -> dict[str, Any]:
    position = {"fraction": share, "images_seen": round(1e5 * share), "train_flops": share * budget}
    metrics = {"fd_effnet_lite0": distance, "kid": distance / 30000, "precision": 0.6, "recall": 0.4}
    return {**position, **metrics, "density": 0.8, "coverage": 0.2 * share, "nearest": 1.25, **SETUP}


def of_before(record: Record) -> Record:
    """As it was made before density, coverage and nearest were measured."""
    history = [without(row, *LATER) for row in record.history]
    return replace(record, summary=without(record.summary, *LATER), history=history)


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def make_times(params: Params, name: str = "default", **slower: float) -> StepTimes:
    """Steps of all phases at `SPEED`; those of the arms in `slower` take so many times as long."""
    step = BUDGET / POINTS / SPEED
    seconds = {f"{name}/{arm}": [step * slower.get(arm, 1.0)] * len(phases) for arm, phases in params.arms.items()}
    hardware = {"device": "cpu", "cpu": "a CPU", "cores": 2, "processes": 1}
    return StepTimes("2025-01-01T00:00:00+00:00", {"commit": "0123456789"}, hardware, seconds, spread=0.03)


def analysed(
    params: Params,
    records: analysis.Records | None = None,
    times: StepTimes | None = None,
    shorter: Sequence[pd.DataFrame] = (),
    **reduction: float,
) -> analysing.Analysed:
    records = make_records(params, REDUCTION | reduction) if records is None else records
    return analysing.analyse("default", params, records, times or make_times(params), REFERENCE, shorter)


def write_project(root: Path, params: dict[str, Any], records: analysis.Records) -> None:
    """All files that the stage reads."""
    (root / "profiles" / "recipes").mkdir(parents=True)
    for path, content in (("params.yaml", params), ("profiles/recipes/tuned.yaml", RECIPE)):
        (root / path).write_text(json.dumps(content))  # JSON is YAML
    for record, machine in records:
        assert machine is not None
        write_record(root, record, machine)
    keys = {record.key for record, _ in records}
    for arm in params["arms"]:
        fold_records(root, "default", arm, keys)
    (root / "records" / "reference.json").write_text(json.dumps(REFERENCE))
    write_step_times(root / "records" / "step_time.json", make_times(Params.model_validate(params)))
    prepared = root / "data" / "prepared"
    prepared.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (36, 1, 32, 32), dtype=np.uint8)
    np.save(prepared / "images.npy", images)
    (prepared / "dataset.json").write_text(json.dumps(DATASET))
    for arm in params["arms"]:
        for seed in params["seeds"]:
            folder = root / "runs" / "evaluate" / arm / str(seed)
            folder.mkdir(parents=True)
            for share in params["budget"]["snapshots"]:
                np.save(folder / samples_file(share), np.repeat(images, 2, axis=0)[:64])
    arms = Params.model_validate(params).arms
    names = [
        f"{arm}/{index}/{number}"
        for arm, phases in arms.items()
        for index, phase in enumerate(phases)
        for number, group in enumerate(phase.groups)
        if group.mask
    ]
    masks: dict[str, Any] = {name: np.eye(8, dtype=bool)[None].repeat(16, 0) for name in names}
    np.savez(root / "runs" / "masks.npz", **masks)


def write_parts(root: Path, params: dict[str, Any], trained: dict[str, dict[str, Any]], before: str = "") -> None:
    """Parts of the study with the records of their trials and what they were timed by.

    Args:
        root: the project.
        params: its settings.
        trained: name -> the block of a part.
        before: the name of one whose records are older than density, coverage and nearest.
    """
    own = Params.model_validate(params)
    seconds: dict[str, list[float]] = {}
    for name, block in trained.items():
        part = Study(parts={name: Part.model_validate(block)}).params(name, own)
        for record, machine in make_records(part, name=name):
            assert machine is not None
            write_record(root, of_before(record) if name == before else record, machine)
        seconds |= make_times(part, name).seconds
    write_step_times(root / "records" / "study_step_time.json", replace(make_times(own), seconds=seconds))


def write_settings_of_parts(root: Path, parts: dict[str, dict[str, Any]]) -> None:
    """`study/params.yaml`."""
    (root / "study").mkdir()
    (root / "study" / "params.yaml").write_text(json.dumps({"parts": parts}))


def write_search(root: Path) -> None:
    """The tables of a search with four trials, one of them pruned."""
    folder = root / "reports" / "search"
    folder.mkdir(parents=True)
    masks = {"4x4 crop": "crop", "2x2 blocks, 90 %": "block2", "5x5 crop": "crop", "patch-wise, 50 %": "patch"}
    trials = [
        {"trial": number, "state": "pruned" if number == 2 else "complete", "share_spent": 1.0, "heldout_loss": loss}
        | {"masks": words, "mask": mask, "effective_mask_ratio": 0.75, "phases": 1, "share": 0.3, "batch_size": 32}
        | {"lr": 4e-3}
        for number, ((words, mask), loss) in enumerate(zip(masks.items(), (0.12, 0.13, 0.2, 0.11), strict=True))
    ]
    confirmed = [
        {"arm": arm, "masks": words, "seed": seed, "heldout_loss": loss, "fd_effnet_lite0": 1e4 * loss, "kid": 2.0}
        | {"train_flops": 1e12, "compute_to_target": share}
        for arm, words, loss, share in (
            ("trial3", "patch-wise, 50 %", 0.11, 0.8),
            ("paper", "2x2 blocks, 90 %", 0.115, 0.9),
            ("scratch", "-", 0.12, 1.0),
        )
        for seed in (101, 102)
    ]
    importances = [{"parameter": "lr", "importance": 0.7}, {"parameter": "share", "importance": 0.3}]
    for name, rows in (("trials", trials), ("confirmation", confirmed), ("importance", importances)):
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


def run_stage(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "pipeline.report", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
