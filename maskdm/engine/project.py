"""What all that trains and judges shares: the opened project, and the identity and the parameters of a trial."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from maskdm.config.comparison import Phase
from maskdm.config.masks import BlockMask, CropMask, Mask, PatchMask, StratifiedMask
from maskdm.config.objective import flat_settings
from maskdm.config.params import Params
from maskdm.config.reading import flat, load_params, recipe_of
from maskdm.config.recipe import Recipe
from maskdm.config.study import Study
from maskdm.datasets.prepared import PreparedData
from maskdm.networks.network import Network
from maskdm.numerics import NUMERICS
from maskdm.runtime.device import choose_device
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import expanded
from maskdm.runtime.locks import locked
from maskdm.runtime.paths import PREPARED, REFERENCE, ROOT, places_of
from maskdm.runtime.processes import Processes
from maskdm.tracking.records import Machine, Record, Stage, dvc_state, git_state, hardware
from maskdm.training.checkpoint import fingerprint
from maskdm.training.plan import PhasePlan, build_network


@dataclass(frozen=True)
class Project:
    """The settings of a comparison, or of one trial, and where it runs."""

    params: Params
    recipe: Recipe
    data: PreparedData
    device: torch.device
    processes: Processes
    reference: Path = REFERENCE  # folder with what samples of these data are compared with
    sets: Mapping[str, PreparedData] = field(default_factory=dict)  # other data sets that phases see, by name

    @classmethod
    def open(cls, processes: Processes) -> "Project":
        """Read the settings and open the prepared data.

        Raises:
            MaskDMError: a setting or the data is not usable.
        """
        params = load_params(ROOT / "params.yaml")
        data = PreparedData.open(PREPARED)
        _check_labels(params, data)
        return cls(params, recipe_of(params, ROOT), data, choose_device(), processes)

    def of_part(self, study: Study, name: str) -> "Project":
        """The project with the settings of a part of the study, and its data set.

        Raises:
            MaskDMError: the settings or the data are not usable.
        """
        params, data_set = study.params(name, self.params), study.all_parts[name].set
        project = self.on_set(data_set, params)
        reference = places_of(data_set).reference
        if data_set is not None:
            _require(reference, f"set_reference@{data_set}")
        return replace(project, recipe=recipe_of(params, ROOT), reference=reference)

    def on_set(self, data_set: str | None, params: Params) -> "Project":
        """The project with other settings, whose images are those of a data set of the study, or its own for None.

        Raises:
            MaskDMError: the data are not there, or do not fit the settings.
        """
        places = places_of(data_set)
        if data_set is not None:
            _require(places.prepared, f"set@{data_set}")
        data = self.data if data_set is None else PreparedData.open(places.prepared)
        seen = {phase.set for phases in params.arms.values() for phase in phases if phase.set is not None}
        sets = {name: PreparedData.open(places.prepared.with_name(name)) for name in sorted(seen)}
        for found in (data, *sets.values()):
            _check_labels(params, found)
        return replace(self, params=params, data=data, sets=sets)

    def training_data(self, plan: PhasePlan) -> PreparedData:
        """What a phase sees.

        Raises:
            MaskDMError: images of another shape than those of the comparison.
        """
        if plan.data_set is None:
            return self.data
        found = self.sets[plan.data_set]
        if found.info["shape"] != self.data.info["shape"]:
            raise MaskDMError(
                f"set={plan.data_set}: images of {found.info['shape']}; allowed: {self.data.info['shape']}"
            )
        return found

    def trial(self, arm: str, seed: int) -> "Project":
        """The project with the settings of one trial."""
        return replace(self, params=self.params.trial(arm, seed))

    def num_parameters(self) -> int:
        """Weights of the network."""
        with torch.device("meta"):
            return build_network(self.params.model, self.params.data, self.data.info["num_classes"]).num_parameters()

    def record(self, stage: Stage, key: str, trial_identity: str, params: dict[str, Any]) -> Record:
        """The record of a trial before anything is measured."""
        data = {"name": self.params.data.title}
        data |= {key: self.data.info[key] for key in ("sha256", "train", "heldout", "shape")}
        arm = self.params.arm
        return Record(stage, key, arm, trial_identity, {"arm": arm, **params}, data, summary={}, history=[])

    def machine(
        self, started_at: str, total_seconds: float, images: int, seconds: list[float], memory: int | None
    ) -> Machine:
        """Where, when and how fast a trial trained: `images` in `total_seconds`, with the `seconds` of its rows."""
        return Machine(
            started_at=started_at,
            git=git_state(ROOT),
            dvc=dvc_state(ROOT),
            hardware=hardware(self.device, self.processes.count),
            stage_seconds=total_seconds,
            images_per_second=images / total_seconds if total_seconds else None,
            peak_memory_bytes=memory,
            seconds=seconds,
        )


def require_data_of(params: Params, data: PreparedData) -> None:
    """Refuse prepared images that are not those of the settings.

    Raises:
        MaskDMError: they are of another set, folder or shape.
    """
    wanted = [params.data.channels, params.data.image_size, params.data.image_size]
    place = str(expanded(params.data.root, "data.root")) if params.data.root else ""
    is_of_them = data.info["name"] == params.data.name and place in data.info["source"]
    if data.info["shape"] != wanted or not is_of_them:
        raise MaskDMError(
            f"data/prepared holds {data.info['name']} of shape {data.info['shape']} ({data.info['source']}), the "
            f"settings say {params.data.name} of shape {wanted} {place}; run `dvc repro prepare` first"
        )


def _require(folder: Path, stage: str) -> None:
    if not folder.is_dir():
        raise MaskDMError(f"{folder}: no such folder; make it with `dvc repro study/dvc.yaml:{stage}`")


def _check_labels(params: Params, data: PreparedData) -> None:
    if params.model.class_conditional and data.labels is None:
        remedy = ", or data.labels: folders" if data.info["name"] == "image_folder" else ""
        raise MaskDMError(
            f"model.class_conditional=true, but {data.info['name']} has no labels; allowed: false{remedy}"
        )


def initial_network(params: Params, num_classes: int | None) -> Network:
    """The network with weights drawn from `params.seed`: the same for all arms, on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        return build_network(params.model, params.data, num_classes)


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a work folder: a `dvc repro` that was killed may have left its stage running.

    Raises:
        MaskDMError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent.with_suffix(".lock"), folder):
        yield


def identity(project: Project, *parts: Any) -> str:
    """A fingerprint of what a stage or a trial was given, of the data, the kind of device and `NUMERICS`."""
    data = {key: project.data.info[key] for key in ("sha256", "train", "heldout", "shape")}
    return fingerprint(NUMERICS, data, project.device.type, *parts)


def arm_settings(phases: Sequence[Phase], recipe: Recipe) -> list[dict[str, Any]]:
    """The phases of an arm for a fingerprint: what they come to, however they are written.

    Defaults are left out: a setting that is added later, with a default that means "as before", changes nothing.
    """
    settings = [
        phase.model_dump(exclude={"override", "handover"}, exclude_defaults=True)
        | {"optimisation": phase.optimisation(recipe).model_dump(exclude_defaults=True)}
        for phase in phases
    ]
    for phase, found in zip(phases[:-1], settings, strict=False):  # nothing comes after the last one
        found["handover"] = phase.handover or recipe.handover
    return settings


def trial_params(project: Project, plans: tuple[PhasePlan, ...]) -> dict[str, Any]:
    """The flat parameters of a trial, under the same names in every trial so that MLflow's UI can compare them.

    Values of phases in sequence are joined by arrows.
    """
    params = project.params
    shared = flat(params.model_dump(include={"recipe", "data", "model"}))
    predicted = flat_settings(project.recipe.objective) | {"handover": project.recipe.handover}
    own = _joined([{**mask_params(plan), **_optimisation_params(plan)} for plan in plans])
    size = {"num_parameters": project.num_parameters()}
    return {"seed": params.seed} | own | {"train_flops": params.budget.train_flops} | shared | size | predicted


def mask_params(plan: PhasePlan) -> dict[str, Any]:
    """The method and mask of a phase as flat parameters; without a mask the ratio is 0."""
    mask = plan.mask
    return {
        "method": method_param(plan),
        "mask.strategy": mask.strategy if mask else "none",
        "mask.ratio": mask.ratio if isinstance(mask, PatchMask | BlockMask) else plan.removed,
        "mask.effective_ratio": plan.removed,
        "mask.size": _size(mask),
        "mask.positions": plan.positions,
        "mask.handover": plan.handover or "none",
    }


def method_param(plan: PhasePlan) -> str:
    """The method of a phase with its settings: `route first=1 last=1`; `none` if every block sees everything."""
    if not plan.removed:
        return "none"
    settings = plan.method.model_dump(exclude={"name"}, exclude_defaults=True)
    return " ".join([plan.method.name, *(f"{key}={value}" for key, value in settings.items())])


def _size(mask: Mask | None) -> int:
    """Tokens a side of what is kept or removed together; 0 without a mask."""
    match mask:
        case PatchMask():
            return 1
        case BlockMask() | StratifiedMask():
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
    """A plan for a fingerprint, without settings that have their default: as in `arm_settings`."""
    own = {
        "mask": plan.mask and plan.mask.model_dump(),
        "method": plan.method.model_dump(exclude_defaults=True),
        "optimisation": flat(plan.optimisation.model_dump(exclude_defaults=True)),
    }
    return {name: value for name, value in vars(plan).items() if name != "data_set" or value} | own
