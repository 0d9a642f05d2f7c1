"""The numbers of short trainings of every kind of mask, objective, optimiser and network, and of what judges them.

python -m tests.golden    # writes golden.json anew, after NUMERICS has been raised, and prints hashes of the weights
"""

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskdm.config.objective import SAMPLERS
from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.engine.project import Project
from maskdm.engine.train import train_phases
from maskdm.evaluation.metrics import Reference, ReferenceKey, compare
from maskdm.evaluation.sampling import sample_images
from maskdm.numerics import NUMERICS
from maskdm.runtime.processes import ALONE
from maskdm.training.checkpoint import network_sha256
from maskdm.training.plan import arm_plans, build_network
from tests.conftest import MODELS, PARAMS, RECIPE, make_data
from tests.denoisers import EDM

FILE = Path(__file__).with_name("golden.json")
STEPS = 8  # of each phase: few, so that rounding stays rounding
SAMPLES = 16

Numbers = dict[str, float]


def phase(mask: dict[str, Any], share: float = 0.3, **settings: Any) -> dict[str, Any]:
    """A masked phase as `params.yaml` has it."""
    return {"mask": mask, "share": share, "batch_size": 8, **settings}


PATCH, BLOCK, CROP = (
    {"strategy": "patch", "ratio": 0.75},
    {"strategy": "block", "ratio": 0.75, "block": 2},
    {"strategy": "crop", "crop": 3},
)


def with_method(name: str, mask: dict[str, Any] | None = None, **settings: Any) -> list[dict[str, Any]]:
    """A phase of another method than the paper's."""
    own = {"share": 0.3, "batch_size": 8, "method": {"name": name, **settings}}
    return [own if mask is None else own | {"mask": mask}]


LEVELS = [{"until": 0.3, "crop": 2}, {"until": 0.6, "crop": 3, "rate": 2.0}, {"until": 1.0, "factor": 2}]
DDPM = RECIPE["objective"]
LINEAR = {**DDPM, "prediction_type": "epsilon", "beta_schedule": "linear"}
# name -> masked phases, changes of the U-ViT or another network, changes of the recipe, of its optimisation
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "dense": ([], {}, {}, {}),
    "patch": ([phase(PATCH)], {}, {}, {}),
    "block then crop": ([phase(BLOCK, 0.2), phase(CROP, 0.2)], {}, {}, {}),
    "weights handed over": ([phase(PATCH)], {}, {"handover": "weights"}, {}),
    "no positions": ([phase(PATCH, positions=False)], {}, {}, {}),
    "classes and mirrored images": ([phase(CROP)], {"class_conditional": True}, {}, {"hflip": 0.5}),
    "epsilon, linear": ([phase(BLOCK)], {}, {"objective": LINEAR}, {}),
    "muon, min-SNR": ([phase(CROP)], {}, {}, {"optimizer": "muon", "min_snr_gamma": 5.0}),
    "another rate, no clipping": ([phase(CROP, override={"lr": 5e-3})], {}, {}, {"grad_clip": None, "warmup": 0.2}),
    "mixed crops": (with_method("mixed_crops", crops=[{"crop": 3, "share": 0.5}]), {}, {}, {}),
    "defer": (with_method("defer", PATCH, mixer=1), {}, {}, {}),
    "encode-decode": (with_method("encode_decode", PATCH, decoder=1), {}, {}, {}),
    "route": (with_method("route", PATCH, first=1, last=1), {}, {}, {}),
    "sparse-dense": (
        with_method("sparse_dense", {"strategy": "stratified", "block": 2}, first=1, last=1, path_drop=0.1),
        {},
        {},
        {},
    ),
    "coarse, lower resolution": (with_method("coarse", kind="resolution", factor=2), {}, {}, {}),
    "coarse, larger patches": (with_method("coarse", kind="patch", factor=2, above=0.5), {}, {}, {}),
    "sized to the noise": (with_method("sized_to_noise", levels=LEVELS), {}, {}, {}),
    "dropped labels": ([], {"class_conditional": True}, {}, {"label_dropout": 0.3}),
    "dit": ([phase(PATCH)], MODELS["dit"], {}, {"optimizer": "muon"}),
    "unet": ([phase(CROP)], MODELS["unet"], {}, {"optimizer": "muon"}),
    "x_0, min-SNR": ([phase(CROP)], {}, {"objective": {**DDPM, "prediction_type": "sample"}}, {"min_snr_gamma": 5.0}),
    "vp": ([phase(CROP)], {}, {"objective": {"name": "vp", "prediction_type": "v_prediction"}}, {}),
    "flow": ([phase(CROP)], {}, {"objective": {"name": "flow", "time_distribution": "uniform"}}, {}),
    "flow, logit-normal": ([phase(CROP)], {}, {"objective": {"name": "flow", "time_distribution": "logit_normal"}}, {}),
    "edm": ([phase(CROP)], {}, {"objective": EDM}, {}),
}


def main() -> None:
    """Write the file, and print what may not change by a single bit where code is only moved."""
    numbers, hashes = measure_all()
    content = json.dumps({"numerics": NUMERICS, "numbers": numbers}, indent=1, sort_keys=True)
    FILE.write_text(content + "\n", encoding="utf-8")
    print("\n".join(f"{hashes[name]}  {name}" for name in sorted(hashes)))


def measure_all() -> tuple[dict[str, Numbers], dict[str, str]]:
    """The numbers of every case, and a hash of what it came to, bit for bit."""
    numbers: dict[str, Numbers] = {}
    hashes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in CASES:
            numbers[name], hashes[name] = measure(name, Path(folder) / str(len(numbers)))
    return numbers, hashes


def measure(name: str, folder: Path) -> tuple[Numbers, str]:
    """Train a case and look at its samples."""
    masked, model, recipe_changes, optimisation = CASES[name]
    recipe = Recipe.model_validate(
        {**RECIPE, **recipe_changes, "optimisation": {**RECIPE["optimisation"], **optimisation}}
    )
    network = {"model": PARAMS["model"] | model}
    if "name" in model:  # another one, and a budget that whole steps of it meet
        network = {"model": model, "budget": PARAMS["budget"] | {"train_flops": 1e11}}
    params = Params.model_validate(
        PARAMS | network | {"seeds": [0], "baseline": "arm"} | {"arms": {"arm": [*masked, {"batch_size": 4}]}}
    )
    project = Project(params, recipe, make_data(), torch.device("cpu"), ALONE)
    plans = tuple(
        replace(plan, steps=STEPS, heldout_steps=(STEPS,), snapshot_steps={})
        for plan in arm_plans(params, recipe, "arm")
    )
    torch.manual_seed(0)
    start = build_network(params.model, params.data, num_classes=4)
    trained = train_phases(project, plans, start, folder, log=lambda _: None)
    weights = torch.cat([weight.flatten().double() for weight in trained.network.parameters()])
    last = trained.history[-1]
    numbers = {key: last[key] for key in ("loss", "heldout_loss", "grad_norm", "train_flops")}
    numbers["weights"] = weights.norm().item()
    labels = torch.arange(SAMPLES) % 4 if trained.network.num_classes else None
    images = {}
    samplers = SAMPLERS[recipe.objective.name]
    for sampler in samplers:
        settings = params.sampling.model_copy(update={"sampler": sampler})
        images[sampler] = sample_images(trained.network, recipe.objective, settings, range(SAMPLES), 0, labels)
        numbers[f"mean pixel, {sampler}"] = float(images[sampler].mean())
    numbers |= judged(images["ddim" if "ddim" in images else "euler"], project)
    digest = hashlib.sha256(network_sha256(trained.network).encode())
    for sampler in samplers:
        digest.update(images[sampler].tobytes())
    return numbers, digest.hexdigest()[:16]


def judged(samples: np.ndarray, project: Project) -> Numbers:
    """All metrics of the samples, with pixels for features: an extractor has tests of its own."""
    evaluation = project.params.evaluation.model_copy(update={"kid_subset_size": 8})
    key = ReferenceKey("0" * 64, evaluation.extractor, "0" * 64, evaluation.input_size, 64, evaluation.nearest_k)
    real, made = (
        images.reshape(len(images), -1).astype(np.float32) / 255 for images in (project.data.train[:64], samples)
    )
    return compare(made, Reference.of(key, real), evaluation, seed=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
