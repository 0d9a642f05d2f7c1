"""A comparison without training: settings and records with known numbers, and a project that holds them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from maskdm import analysis
from maskdm.config import Params
from maskdm.records import Machine, Record, StepTimes, write_record, write_step_times
from tests.conftest import PARAMS

PROJECT_ROOT = Path(__file__).resolve().parent.parent
BUDGET = 36e12
POINTS = 40  # measurements of an arm, evenly spaced, a step each
SPEED = 80e9  # FLOPs a second
COST = {"pretrain": 25e6, "finetune": 190e6}  # FLOPs an image
REDUCTION = {"scratch": 1.0, "patch90": 0.95, "block90": 0.94, "crop3": 1.03}  # final loss against scratch
DISTANCE = {"scratch": 920.0, "patch90": 880.0, "block90": 842.0, "crop3": 990.0}
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
    "floor": {"fd_effnet_lite0": 80.25, "kid": -0.00012, "precision": 0.91, "recall": 0.9},
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
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
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
    def masked(mask: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"mask": mask, "share": 0.25, "batch_size": 256}]

    return {
        "seed": 0,
        "recipe": "tuned",
        "data": {
            "name": "image_folder",
            "root": None,
            "image_size": 32,
            "channels": 1,
            "holdout": 12,
            "train_images": None,
        },
        "model": {"patch_size": 4, "embed_dim": 96, "depth": 5, "num_heads": 3, "class_conditional": False},
        "budget": {"train_flops": BUDGET, "snapshots": [0.2, 0.6, 1.0]},
        "heldout": {"images": 12, "points": 40},
        "pretrain": {
            "none": [],
            "patch90": masked({"strategy": "patch", "ratio": 0.9}),
            "block90": masked({"strategy": "block", "ratio": 0.9, "block": 2}),
            "crop3": masked({"strategy": "crop", "crop": 3}),
        },
        "arms": {
            "scratch": {"pretrain": "none", "finetune": {"batch_size": 64}},
            "patch90": {"pretrain": "patch90", "finetune": {"batch_size": 64}},
            "block90": {"pretrain": "block90", "finetune": {"batch_size": 64}},
            "crop3": {"pretrain": "crop3", "finetune": {"batch_size": 64}},
        },
        "baseline": "scratch",
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
        "search": PARAMS["search"],
    }


def make_records(params: Params, reduction: dict[str, float] = REDUCTION) -> list[tuple[Record, Machine | None]]:
    """Records of smooth made-up curves: fine-tuned arms follow scratch's power law, times `reduction`."""
    made: dict[tuple[str, str], tuple[Record, Machine | None]] = {}
    for name, arm in params.arms.items():
        phases = params.pretrain[arm.pretrain]
        switch = BUDGET * sum(phase.share for phase in phases)
        marks = np.arange(1, POINTS + 1) * BUDGET / POINTS
        histories: dict[str, list[dict[str, Any]]] = {"pretrain": [], "finetune": []}
        ends = np.cumsum([phase.share for phase in phases]) * BUDGET
        images = 0.0
        for before, flops in zip([0.0, *marks], marks, strict=False):
            stage = "pretrain" if flops <= switch * (1 + 1e-9) else "finetune"
            images += (flops - before) / COST[stage]
            loss = 0.0806 * (flops / BUDGET) ** -0.25 * reduction[name]
            if stage == "pretrain":
                loss = 0.3 * (flops / BUDGET) ** -0.1 * reduction[name]
            phase = int(np.searchsorted(ends * (1 + 1e-9), flops))
            step = 1 + sum(row["phase"] == phase for row in histories[stage])
            row: dict[str, Any] = {"step": step, "phase": phase}
            row |= {"images_seen": round(images), "train_flops": flops, "loss": loss, "heldout_loss": loss}
            histories[stage].append(row | {"lr": 1e-3, "grad_norm": 1.0})
        for stage, key in (("pretrain", arm.pretrain), ("finetune", name)):
            seconds = [float(row["step"]) for row in histories[stage]]  # wall times: no comparison reads them
            made[stage, key] = make_record(stage, key, name, histories[stage], seconds)
        made["evaluate", name] = make_record("evaluate", name, name, evaluate_rows(params, name), [20.0] * 3)
    return list(made.values())


def make_times(params: Params, **slower: float) -> StepTimes:
    """Steps of all phases at `SPEED`; those of the arms in `slower` take so many times as long."""
    step = BUDGET / POINTS / SPEED
    phases = {name: 1 + len(params.pretrain[arm.pretrain]) for name, arm in params.arms.items()}
    seconds = {name: [step * slower.get(name, 1.0)] * count for name, count in phases.items()}
    hardware = {"device": "cpu", "cpu": "a CPU", "cores": 2, "processes": 1}
    return StepTimes("2025-01-01T00:00:00+00:00", {"commit": "0123456789"}, hardware, seconds, spread=0.03)


def evaluate_rows(params: Params, arm: str) -> list[dict[str, Any]]:
    return [
        {
            "fraction": share,
            "images_seen": 1000,
            "train_flops": share * BUDGET,
            "fd_effnet_lite0": DISTANCE[arm] / share**0.5,
            "kid": DISTANCE[arm] / share**0.5 / 30000,
            "precision": 0.6,
            "recall": 0.4,
            **SETUP,
        }
        for share in params.budget.snapshots
    ]


def make_record(
    stage: Any, key: str, arm: str, history: list[dict[str, Any]], seconds: list[float]
) -> tuple[Record, Machine | None]:
    data = {name: DATASET[name] for name in ("name", "sha256", "train", "heldout", "shape")}
    record = Record(stage, key, arm, "fingerprint", {"seed": 0}, data, {}, history)
    machine = Machine(
        started_at="2025-01-01T00:00:00+00:00",
        git={},
        dvc={},
        hardware={},
        stage_seconds=seconds[-1] if seconds else 0.0,
        images_per_second=2000.0 if stage == "pretrain" and history else 400.0 if history else None,
        peak_memory_bytes=700_000_000 if stage == "pretrain" else 900_000_000,
        seconds=seconds,
    )
    return record, machine


def frames(
    params: Params, records: analysis.Records, times: StepTimes | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    losses = analysis.heldout_losses(params, records, times or make_times(params))
    measured = analysis.distances(params, records, REFERENCE, losses)
    return losses, measured, analysis.arms_table(params, records, losses, measured)


def write_project(root: Path, params: dict[str, Any], records: analysis.Records) -> None:
    """All files that the stage reads."""
    (root / "profiles" / "recipes").mkdir(parents=True)
    for path, content in (("params.yaml", params), ("profiles/recipes/tuned.yaml", RECIPE)):
        (root / path).write_text(json.dumps(content))  # JSON is YAML
    for record, machine in records:
        assert machine is not None
        write_record(root, record, machine)
    (root / "records" / "reference.json").write_text(json.dumps(REFERENCE))
    write_step_times(root / "records" / "step_time.json", make_times(Params.model_validate(params)))
    prepared = root / "data" / "prepared"
    prepared.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (36, 1, 32, 32), dtype=np.uint8)
    np.save(prepared / "images.npy", images)
    (prepared / "dataset.json").write_text(json.dumps(DATASET))
    for arm in params["arms"]:
        folder = root / "runs" / "evaluate" / arm
        folder.mkdir(parents=True)
        np.save(folder / "samples.npy", np.repeat(images, 2, axis=0)[:64])
    names = [f"{key}/{index}" for key, phases in params["pretrain"].items() for index in range(len(phases))]
    masks: dict[str, Any] = {name: np.eye(8, dtype=bool)[None].repeat(16, 0) for name in names}
    np.savez(root / "runs" / "masks.npz", **masks)


def run_stage(root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, "-m", "pipeline.report"]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
