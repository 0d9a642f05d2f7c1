"""What each part of the recipe is worth: scratch at a fixed compute with one thing changed.

`python -m benchmarks.recipe [--variants NAME ...] [--budgets FLOPS ...] [--seeds N]` trains the default profile's
scratch arm for every combination, one process with one thread for each core, and prints a table of held-out losses and
distances. Results are kept in `work/benchmarks/recipe/`, so that the same command goes on where it was stopped.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.sampling import Distance
from maskdm.config.method import Group
from maskdm.config.params import Params
from maskdm.config.reading import load_params, load_recipe
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.engine.project import initial_network
from maskdm.engine.workers import run_all
from maskdm.evaluation.sampling import sample_images
from maskdm.networks.uvit import UViT
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.files import write_atomically
from maskdm.runtime.paths import PREPARED, ROOT
from maskdm.runtime.threads import count_cores
from maskdm.training.checkpoint import fingerprint
from maskdm.training.loop import PhaseTrainer, make_heldout_loss
from maskdm.training.objective import make_objective
from maskdm.training.plan import plan_finetune
from maskdm.training.views import Drawn, Part, Views

WORK = ROOT / "work" / "benchmarks" / "recipe"
ADAMW = {"optimizer": "adamw", "lr": 2e-3}  # what was tuned before Muon


class LogitNormalTimesteps(Views):
    """More of the middle of the schedule (Esser et al. 2024)."""

    def _draw_times(self, group: Group, random: torch.Generator) -> Tensor:
        shares = torch.randn(self.plan.batch_size, generator=random).sigmoid()
        return (shares * self.objective.num_train_timesteps).long()


class EpsilonWeighted(Views):
    """The error in v weighted to be the error in epsilon, which the held-out loss is."""

    def _draw(self, part: Part, *others: Any) -> Drawn:
        drawn = super()._draw(part, *others)
        return replace(drawn, weights=self.objective.epsilon_error(torch.ones(len(drawn.view.t)), drawn.view.t))


def use_rms_norm(network: UViT) -> None:
    """Root mean squares instead of layer norms."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, nn.RMSNorm(child.normalized_shape))


# name: the recipe to start from; what replaces keys of its `optimisation` and `objective`, of the model, and the batch
# size; other views; a change of the network
VARIANTS: dict[str, dict[str, Any]] = {
    "tuned": {},
    "paper": {"recipe": "paper", "batch_size": 64},
    "paper-cosine": {"recipe": "paper-cosine", "batch_size": 64},
    "AdamW 2e-3, batch 64": {"optimisation": ADAMW, "batch_size": 64},
    "AdamW 2e-3": {"optimisation": ADAMW},
    "AdamW 4e-3": {"optimisation": ADAMW | {"lr": 4e-3}},
    "lr 3e-3": {"optimisation": {"lr": 3e-3}},
    "lr 12e-3": {"optimisation": {"lr": 12e-3}},
    "batch 16": {"batch_size": 16},
    "batch 64": {"batch_size": 64},
    "betas 0.95, 0.99": {"optimisation": {"betas": (0.95, 0.99)}},
    "betas 0.9, 0.999": {"optimisation": {"betas": (0.9, 0.999)}},
    "weight decay 0": {"optimisation": {"weight_decay": 0.0}},
    "weight decay 0.1": {"optimisation": {"weight_decay": 0.1}},
    "decay 0.6": {"optimisation": {"decay": 0.6}},
    "decay 1": {"optimisation": {"decay": 1.0}},
    "EMA horizon 0.05": {"optimisation": {"ema_horizon": 0.05}},
    "EMA horizon 0.2": {"optimisation": {"ema_horizon": 0.2}},
    "flips": {"optimisation": {"hflip": 0.5}},
    "epsilon": {"objective": {"prediction_type": "epsilon"}},
    "linear betas": {"objective": {"beta_schedule": "linear"}},
    "3 blocks": {"model": {"depth": 3}},
    "7 blocks": {"model": {"depth": 7}},
    "width 64": {"model": {"embed_dim": 64, "num_heads": 2}},
    "width 128": {"model": {"embed_dim": 128, "num_heads": 4}},
    "patch 2, batch 16": {"model": {"patch_size": 2}, "batch_size": 16},
    "logit-normal time steps": {"views": LogitNormalTimesteps},
    "epsilon weighting": {"optimisation": {"min_snr_gamma": None}, "views": EpsilonWeighted},
    "equal weighting": {"optimisation": {"min_snr_gamma": None}},
    "min-SNR 1": {"optimisation": {"min_snr_gamma": 1.0}},
    "min-SNR 2": {"optimisation": {"min_snr_gamma": 2.0}},
    "RMS norm": {"network": use_rms_norm},
}


@dataclass(frozen=True)
class Run:
    """One training."""

    variant: str
    budget: float
    seed: int

    def settings(self) -> tuple[Params, Recipe]:
        """The default profile and a recipe with the variant's changes."""
        changes = VARIANTS[self.variant]
        raw = load_params(ROOT / "profiles" / "default.yaml").model_dump()
        raw["seeds"], raw["budget"] = [self.seed], {"train_flops": self.budget, "snapshots": [1.0]}
        raw["heldout"]["points"] = 1
        raw["model"] |= changes.get("model", {})
        (dense,) = raw["arms"][raw["baseline"]]
        raw["arms"], raw["controls"] = {raw["baseline"]: (dense,)}, {}
        dense["batch_size"] = changes.get("batch_size", dense["batch_size"])
        name = changes.get("recipe", raw["recipe"])
        recipe = load_recipe(name, ROOT).model_dump()
        recipe["objective"] |= changes.get("objective", {})
        recipe["optimisation"] |= changes.get("optimisation", {})
        return Params.model_validate(raw), Recipe.model_validate(recipe)

    def folder(self) -> Path:
        """Where it trains and keeps its result; other settings are another folder."""
        params, recipe = self.settings()
        code = [VARIANTS[self.variant][key].__name__ for key in ("trainer", "network") if key in VARIANTS[self.variant]]
        return WORK / fingerprint(params.model_dump(), recipe.flat(), code)


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--budgets", nargs="+", default=[5e12], type=float, metavar="FLOPS")
    parser.add_argument("--seeds", default=2, type=int, metavar="N")
    chosen = parser.parse_args()
    seeds = range(chosen.seeds)
    runs = [Run(v, budget, seed) for budget in chosen.budgets for seed in seeds for v in chosen.variants]
    with exit_with_one_line():
        results = dict(run_all(train, runs, count_cores(), unit="run"))
        print("| change | FLOPs | held-out loss by seed | mean | distance by seed | mean |\n|---|---|---|---|---|---|")
        for variant in chosen.variants:
            for budget in chosen.budgets:
                found = [results[Run(variant, budget, seed)] for seed in seeds]
                losses, distances = ([row[name] for row in found] for name in ("heldout_loss", "distance"))
                cells = (
                    *(variant, f"{budget:.3g}"),
                    *(", ".join(f"{loss:.4f}" for loss in losses), f"{mean(losses):.4f}"),
                    *(", ".join(f"{distance:.0f}" for distance in distances), f"{mean(distances):.0f}"),
                )
                print(f"| {' | '.join(cells)} |")


def train(run: Run) -> tuple[Run, dict[str, float]]:
    """The run with its `heldout_loss` and `distance`, kept or measured now."""
    result = run.folder() / "result.json"
    if not result.is_file():
        row = {"variant": run.variant, "budget": run.budget, "seed": run.seed} | measure(run)
        write_atomically(result, lambda file: file.write(json.dumps(row).encode()))
    found: dict[str, float] = json.loads(result.read_bytes())
    return run, found


def measure(run: Run) -> dict[str, float]:
    """Train the run, or go on with it, and judge its averaged weights."""
    torch.set_num_threads(1)
    params, recipe = run.settings()
    changes = VARIANTS[run.variant]
    data, device = PreparedData.open(PREPARED), torch.device("cpu")
    objective = make_objective(recipe.objective)
    network = initial_network(params, None)
    changes.get("network", lambda _: None)(network)
    heldout = make_heldout_loss(network, objective, data, params.heldout.images, params.seed, device)
    plan = plan_finetune(params, recipe, params.baseline)
    trainer = PhaseTrainer(network, objective, data, plan, heldout, run.seed, run.folder(), lambda _: None)
    trainer.views = changes.get("views", Views)(plan, network, objective, device, trainer.share, processes=1)
    trained = trainer.run()
    distance = Distance.open(params.evaluation, data.info["sha256"], device)
    count = params.evaluation.samples
    images = sample_images(trained.network, recipe.objective, params.sampling, range(count), run.seed)
    return {"heldout_loss": trained.history[-1]["heldout_loss"], "distance": distance(images)}


if __name__ == "__main__":
    main()
