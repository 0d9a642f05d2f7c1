"""What the stages that train and evaluate share: the opened project, a run's identity and its parameters."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from maskdm.config.masks import BlockMask, CropMask, Mask, PatchMask
from maskdm.config.params import MaskedPhase, Params, Phase
from maskdm.config.reading import flat, load_params, load_recipe
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.networks.uvit import UViT
from maskdm.numerics import NUMERICS
from maskdm.runtime.device import choose_device
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import PREPARED, ROOT
from maskdm.runtime.processes import Processes
from maskdm.tracking.records import Machine, Record, Stage, dvc_state, git_state, hardware
from maskdm.training.checkpoint import fingerprint
from maskdm.training.plan import PhasePlan, build_network, peak_memory_bytes, plan_pretrain


@dataclass(frozen=True)
class Project:
    """The settings of a stage and where it runs."""

    params: Params
    recipe: Recipe
    data: PreparedData
    device: torch.device
    processes: Processes

    @classmethod
    def open(cls, processes: Processes) -> "Project":
        """Read the settings and open the prepared data.

        Raises:
            MaskDMError: a setting or the data is not usable.
        """
        params = load_params(ROOT / "params.yaml")
        data = PreparedData.open(PREPARED)
        if params.model.class_conditional and data.labels is None:
            raise MaskDMError(f"model.class_conditional=true, but {data.info['name']} has no labels; allowed: false")
        return cls(params, load_recipe(params.recipe, ROOT), data, choose_device(), processes)

    def plans(self, pretrain: str) -> tuple[PhasePlan, ...]:
        """The phases of a pre-training."""
        return plan_pretrain(self.params, self.recipe, pretrain)

    def num_parameters(self) -> int:
        """Weights of the network."""
        with torch.device("meta"):
            return build_network(self.params.model, self.params.data, self.data.info["num_classes"]).num_parameters()

    def record(self, stage: Stage, key: str, arm: str, run_identity: str, params: dict[str, Any]) -> Record:
        """The record of a stage before anything is measured."""
        data = {key: self.data.info[key] for key in ("name", "sha256", "train", "heldout", "shape")}
        return Record(stage, key, arm, run_identity, {"arm": arm, **params}, data, summary={}, history=[])

    def machine(self, started_at: str, total_seconds: float, images: int, seconds: list[float]) -> Machine:
        """Where, when and how fast a stage ran: `images` in `total_seconds`, with the `seconds` of its rows."""
        return Machine(
            started_at=started_at,
            git=git_state(ROOT),
            dvc=dvc_state(ROOT),
            hardware=hardware(self.device, self.processes.count),
            stage_seconds=total_seconds,
            images_per_second=images / total_seconds if total_seconds else None,
            peak_memory_bytes=peak_memory_bytes(self.device),
            seconds=seconds,
        )


def initial_network(params: Params, num_classes: int | None) -> UViT:
    """The network with weights drawn from `params.seed`: the same for all arms, on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        return build_network(params.model, params.data, num_classes)


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def chosen_key(arguments: list[str], known: Collection[str]) -> str:
    """The one argument of a stage's command, a key of `params.yaml`.

    Raises:
        MaskDMError: there is no such key.
    """
    if len(arguments) != 2 or arguments[1] not in known:
        raise MaskDMError(f"{' '.join(arguments[1:]) or 'no key'}: allowed: one of {', '.join(known)}")
    return arguments[1]


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a work folder: a `dvc repro` that was killed may have left its stage running.

    Raises:
        MaskDMError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise MaskDMError(f"{folder}: another process is at this stage; wait for it, or stop it first") from None
    try:
        yield
    finally:
        lock.release()


def identity(project: Project, *parts: Any) -> str:
    """A fingerprint of what a stage or a trial was given, of the data, the kind of device and `NUMERICS`."""
    data = {key: project.data.info[key] for key in ("sha256", "train", "heldout", "shape")}
    return fingerprint(NUMERICS, data, project.device.type, *parts)


def phase_settings(phase: Phase, recipe: Recipe) -> dict[str, Any]:
    """A phase for a fingerprint: what it comes to, however it is written.

    Defaults are left out: a setting that is added later, with a default that means "as before", changes nothing.
    """
    settings = phase.model_dump(exclude={"override", "handover"}, exclude_defaults=True)
    if isinstance(phase, MaskedPhase):
        settings["handover"] = phase.handover or recipe.handover
    return settings | {"optimisation": phase.optimisation(recipe).model_dump(exclude_defaults=True)}


def run_params(project: Project, pretrain: str, plans: tuple[PhasePlan, ...]) -> dict[str, Any]:
    """The flat parameters of a run, under the same names in every run so that MLflow's UI can compare them.

    `mask.*` is the mask of the run itself, `pretrain.mask.*` that of the pre-training it builds on. Values of phases
    in sequence are joined by arrows.
    """
    params = project.params
    shared = flat(params.model_dump(include={"seed", "recipe", "data", "model"}))
    schedule = project.recipe.model_dump(exclude={"optimisation"})
    budget = {"budget.train_flops": params.budget.train_flops, "pretrain": pretrain}
    size = {"num_parameters": project.num_parameters()}
    before = _joined([mask_params(plan) for plan in project.plans(pretrain)] or [mask_params(None)])
    own = _joined([{**mask_params(plan), **_optimisation_params(plan)} for plan in plans])
    return shared | size | schedule | budget | {f"pretrain.{key}": value for key, value in before.items()} | own


def mask_params(plan: PhasePlan | None) -> dict[str, Any]:
    """The mask of a phase as flat parameters; without a mask the ratio is 0."""
    mask: Mask | None = plan.mask if plan else None
    removed = plan.effective_mask_ratio if plan else 0.0
    return {
        "mask.strategy": mask.strategy if mask else "none",
        "mask.ratio": removed if mask is None or isinstance(mask, CropMask) else mask.ratio,
        "mask.effective_ratio": removed,
        "mask.size": _size(mask),
        "mask.positions": plan.positions if plan else True,
        "mask.handover": plan.handover if plan and mask else "none",
    }


def _size(mask: Mask | None) -> int:
    """Tokens a side of what is kept or removed together; 0 without a mask."""
    match mask:
        case PatchMask():
            return 1
        case BlockMask():
            return mask.block
        case CropMask():
            return mask.crop
    return 0


def _optimisation_params(plan: PhasePlan) -> dict[str, Any]:
    settings = flat(plan.optimisation)
    flops = {"flops_per_image": plan.flops_per_image, "optimizer_flops": plan.optimizer_flops}
    return {"batch_size": plan.batch_size, "steps": plan.steps, **flops, **settings}


def _joined(phases: list[dict[str, Any]]) -> dict[str, Any]:
    """One value for each key: the phases' common one, or all of them with arrows between."""
    return {
        key: phases[0][key] if len({str(p[key]) for p in phases}) == 1 else " -> ".join(str(p[key]) for p in phases)
        for key in (phases[0] if phases else {})
    }


def plan_as_json(plan: PhasePlan) -> dict[str, Any]:
    """A plan for a fingerprint."""
    return {**asdict(plan), "mask": plan.mask and plan.mask.model_dump(), "optimisation": flat(plan.optimisation)}
