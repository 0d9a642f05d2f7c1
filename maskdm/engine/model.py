"""Trained weights as a model of MLflow: what is kept of them, and how its pyfunc flavour loads them and draws images.

What is kept is the pipeline that `maskdm export` writes: configs and safetensors. MLflow's own pytorch flavour would
keep a pickle, which runs code when it is loaded, or an exported graph, which is one step of the network and no image.
Loading runs no code of the folder, not even the files that name the pipeline's classes for diffusers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from maskdm.config.objective import DDPM, EDM, VP, Flow, ObjectiveSettings
from maskdm.config.params import Sampling
from maskdm.config.reading import validated
from maskdm.engine.export import write_pipeline
from maskdm.runtime.device import choose_device
from maskdm.runtime.files import reading
from maskdm.runtime.seeding import generator
from maskdm.tracking.mlflow_models import Model
from maskdm.tracking.records import Record
from maskdm.training.checkpoint import load_snapshot

if TYPE_CHECKING:
    import pandas as pd

    from maskdm.evaluation.pipeline import MaskDMPipeline

FIRST = 0  # of the images of a seed: that which `maskdm sample --seed` draws first
REMEDY = "download the model again"


def as_model(weights: Path, objective: ObjectiveSettings, sampling: Sampling) -> Model:
    """A folder of weights as a model of MLflow, with how images are drawn if a caller does not say."""

    def write(folder: Path) -> None:
        write_pipeline(folder, load_snapshot(weights, torch.device("cpu")), objective, sampling)

    with reading(config := weights / "config.json", "`dvc repro` trains it again"):
        has_classes = json.loads(config.read_bytes()).get("num_classes") is not None
    return Model(write, has_classes, sampling.model_dump(include={"num_inference_steps", "guidance_scale"}))


def recorded_model(record: Record, folder: Path) -> Model | None:
    """The weights that a stage left in `folder`, if they are those that this judged trial was judged with."""
    try:
        history = json.loads((folder / "training.json").read_bytes())["history"]
    except (OSError, ValueError, KeyError):
        return None
    if history != record.history[: len(history)]:
        return None  # trained again, with other settings
    given = {key: value for key, value in record.params.items() if key.startswith("sampling.")}
    sampling = validated(Sampling, {key.removeprefix("sampling."): value for key, value in given.items()}, "sampling")
    return as_model(folder / "weights", _recorded_objective(record.params), sampling)


def _recorded_objective(params: Mapping[str, Any]) -> ObjectiveSettings:
    """The settings that `flat_settings` put among a trial's parameters."""
    kinds: dict[str, type[DDPM | VP | Flow | EDM]] = {"ddpm": DDPM, "vp": VP, "flow": Flow, "edm": EDM}
    name = params.get("objective", "ddpm")
    kind = kinds[name]
    given = {key: params[key] for key in kind.model_fields if key in params}
    return validated(kind, {**given, "name": name}, "objective")


def _load_pyfunc(path: str) -> "Sampler":
    """What `mlflow.pyfunc.load_model` calls, with the folder that `Model.write` has filled."""
    from maskdm.evaluation.pipeline import MaskDMPipeline

    folder = Path(path)
    with reading(index := folder / "model_index.json", REMEDY):
        settings = json.loads(index.read_bytes())
    network = load_snapshot(folder / "network", choose_device())
    return Sampler(MaskDMPipeline(network, settings["objective"], settings["sampling"]))


class Sampler:
    """Draws an image for each row that it is given."""

    def __init__(self, pipeline: "MaskDMPipeline") -> None:
        self.pipeline = pipeline

    def predict(self, model_input: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Images uint8 `[rows, H, W, C]`; that of a seed is the first one of `maskdm sample --seed`.

        Args:
            model_input: a column `seed` and, for a network with classes, `label`; without one all classes in turn.
            params: `num_inference_steps` and `guidance_scale`, where other than in training are wanted.
        """
        random = [generator("cpu", int(seed), "sample", FIRST) for seed in model_input["seed"]]
        labels = [int(label) for label in model_input["label"]] if "label" in model_input else None
        images = self.pipeline(len(random), labels, random, **(params or {})).images
        pixels = np.stack([np.asarray(image) for image in images])
        return pixels if pixels.ndim == 4 else pixels[..., None]
