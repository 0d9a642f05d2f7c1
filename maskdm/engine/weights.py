"""Trained weights by what a user calls them, with the settings to sample them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskdm.config.objective import ObjectiveSettings, objective_name
from maskdm.config.params import Params, Sampling
from maskdm.config.reading import load_recipe, validated
from maskdm.networks.network import Network
from maskdm.runtime.device import choose_device
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import ROOT, stage_folder
from maskdm.training.checkpoint import load_objective, load_snapshot

STAGES = ("finetune", "train")  # where trials of an arm leave their weights: `dvc repro`, `maskdm train`
PLACES = ("config.json", "weights/config.json")  # in a folder of weights, in that of a run


@dataclass(frozen=True)
class Weights:
    """A trained network and how images are drawn from it."""

    name: str  # for a reader, and usable in a file's name
    folder: Path
    network: Network
    objective: ObjectiveSettings  # what it predicts
    sampling: Sampling

    @classmethod
    def open(cls, source: str, here: Path, params: Params, recipe: str | None, changes: dict[str, Any]) -> "Weights":
        """Load what `source` names.

        Args:
            source: an arm of `params`, `<arm>/<seed>`, or a folder of weights or of a run.
            here: what a relative folder is relative to.
            params: the settings whose sampler counts, and whose recipe, if the weights do not say what they predict.
            recipe: the name of the recipe to take for theirs.
            changes: other settings of the sampler than those of `params`.

        Raises:
            MaskDMError: there are no such weights, they are damaged, or the recipe or the sampler does not fit them.
        """
        folder = find_weights(source, here, params)
        objective = _objective(folder, params, recipe)
        sampling = validated(Sampling, params.sampling.model_dump() | changes, "sampling")
        try:
            sampling.check_objective(objective)
        except ValueError as error:
            raise MaskDMError(f"{error}; --sampler takes another one") from None
        network = load_snapshot(folder, choose_device())
        if network.num_classes is None and sampling.guidance_scale != 1:
            raise MaskDMError(
                f"sampling.guidance_scale={sampling.guidance_scale:g}: {folder} has no classes; allowed: 1"
            )
        name = source.replace("/", "-") if _is_arm(source, params) else Path(source).resolve().name
        return cls(name, folder, network.eval(), objective, sampling)

    def labels(self, count: int, chosen: int | None) -> Tensor | None:
        """Classes of `count` images, int64 `[count]`: the chosen one, or all in turn; None: the network has none.

        Raises:
            MaskDMError: there is no such class.
        """
        classes = self.network.num_classes
        if classes is None and chosen is not None:
            raise MaskDMError(f"class {chosen}: {self.folder} has no classes; allowed: none")
        if classes is None:
            return None
        if chosen is None:
            return torch.arange(count) % classes
        if not 0 <= chosen < classes:
            raise MaskDMError(f"class {chosen}; allowed: 0 to {classes - 1}")
        return torch.full((count,), chosen)


def _objective(folder: Path, params: Params, recipe: str | None) -> ObjectiveSettings:
    """What the weights predict: they say so themselves, or the recipe does, as of imported ones.

    Raises:
        MaskDMError: both say so, and do not agree.
    """
    own = load_objective(folder)
    if own is not None and recipe is None:
        return own
    of_recipe = load_recipe(recipe or params.recipe, ROOT).objective
    if own is not None and own != of_recipe:
        raise MaskDMError(
            f"--recipe {recipe}: it predicts {objective_name(of_recipe)}; {folder} was trained with "
            f"{objective_name(own)}; allowed: leave --recipe out"
        )
    return of_recipe


def find_weights(source: str, here: Path, params: Params) -> Path:
    """The folder with `config.json` and safetensors that `source` names, as in `Weights.open`.

    Raises:
        MaskDMError: there is none.
    """
    if _is_arm(source, params):
        arm, _, seed = source.partition("/")
        return _of_trial(arm, [int(seed)] if seed else list(params.seeds))
    folder = here / source
    if not folder.is_dir():
        raise MaskDMError(
            f"{source}: neither a folder nor an arm; allowed: {', '.join(params.arms)}, <arm>/<seed>, or a folder with "
            "config.json and safetensors"
        )
    for place in PLACES:
        if (folder / place).is_file():
            return (folder / place).parent
    raise MaskDMError(f"{source}: no weights in it; allowed: a folder with config.json and safetensors, or of a run")


def names_weights(source: str, here: Path, params: Params) -> bool:
    """Whether `find_weights` would look for weights there, and not for images."""
    return _is_arm(source, params) or any((here / source / place).is_file() for place in PLACES)


def _is_arm(source: str, params: Params) -> bool:
    arm, _, seed = source.partition("/")
    return arm in params.arms and (not seed or re.fullmatch(r"[0-9]{1,19}", seed) is not None)


def _of_trial(arm: str, seeds: list[int]) -> Path:
    """The weights of the first of some seeds that has been trained."""
    for seed in seeds:
        for stage in STAGES:
            if (folder := stage_folder(stage, arm, seed) / "weights").is_dir():
                return folder
    remedy = f"`dvc repro finetune@{arm}` trains them, `dvc pull` fetches them from a remote"
    raise MaskDMError(f"{arm}: no weights with seed {', '.join(map(str, seeds))} in runs/; {remedy}")
