"""`maskdm init`: from a folder of images to a profile that `dvc repro` runs, and what it will cost.

Which network, batch and budget suit is a guess, by rules that stand here. The machine's speed is measured.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from maskdm.config.params import Params
from maskdm.config.reading import load_recipe, validated
from maskdm.config.recipe import Recipe
from maskdm.config.schema import Name
from maskdm.datasets.survey import Survey, survey
from maskdm.engine.arms import BASELINE
from maskdm.engine.cost import Cost, exact_speed, rough_speed
from maskdm.engine.dry_run import duration
from maskdm.engine.outlook import count_search_runs
from maskdm.engine.profile_text import profile_text
from maskdm.engine.profiles import add_profile, check_new, check_no_edits
from maskdm.engine.proposal import (
    RECIPE,
    SEARCH,
    Settings,
    check_count,
    check_side,
    fitting_side,
    notes,
    settings_of,
    size_in_millions,
    two_digits,
)
from maskdm.engine.sharing import count_processes, take_threads
from maskdm.evaluation.metrics import check_reference, floor_counts
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import PREPARED, ROOT
from maskdm.runtime.threads import count_cores
from maskdm.runtime.units import si
from maskdm.training.plan import arm_plans

# Width, blocks and heads, from small to large; the second is the default's, the last two are the paper's.
NETWORKS = ((32, 3, 2), (48, 5, 3), (96, 5, 3), (192, 7, 6), (256, 9, 8), (384, 11, 6), (512, 13, 8), (768, 13, 12))
# A larger network is taken where scratch sees so many images, and the more the larger it is: of 0.16 M parameters as
# the default's, of 44 M about as the paper's.
IMAGES, MILLIONS, GROWTH = 50_000, 0.16, 1.0
STEPS = 500  # of scratch, at least: fewer miss the budget of the search, and train nothing
SEEDS = (4, 3, 2)  # as many as the time allows
PLENTY = 1e21  # FLOPs that whole steps surely meet, until the budget is known
# What the project itself writes: its figures are no data.
OWN = (".dvc", ".git", "data/prepared", "data/reference", "profiles", "records", "reports", "runs", "work")


@dataclass(frozen=True)
class Candidate:
    """A network with so many seeds on this machine."""

    settings: Callable[[float], Settings]  # of a budget
    cost: Cost

    @property
    def least(self) -> float:
        """The smallest budget that trains something."""
        return STEPS * self.cost.dense.step_flops

    def is_worth(self, budget: float) -> bool:
        """Whether the budget is enough for a network of this size."""
        wanted = IMAGES * max(1.0, size_in_millions(self.cost.params) / MILLIONS) ** GROWTH
        return budget >= max(self.least, wanted / self.cost.dense.batch_size * self.cost.dense.step_flops)

    def measured(self, budget: float, device: torch.device) -> "Candidate":
        """The same, with every kind of step that the budget pays for measured."""
        params = validated(Params, self.settings(budget), "proposal")
        speed = exact_speed(params, self.cost.recipe, device, self.cost.speed)
        return replace(self, cost=replace(self.cost, speed=speed))


@dataclass(frozen=True)
class Proposal:
    """A profile that was written, and what there is to say of it."""

    profile: Path
    found: list[str]  # in the images, a fact a line
    chosen: list[str]
    notes: list[str]  # what the settings cannot show
    settings: Settings
    seconds: float  # that the whole run takes, about


def init(place: Path, device: torch.device, name: str | None, hours: float, image_size: int | None) -> Proposal:
    """Look at images, write `profiles/<name>.yaml`, and make it `params.yaml`.

    Args:
        place: a folder or an archive of images; an absolute path.
        device: that will train: a burst of steps is measured on it.
        name: of the profile; None: that of the folder.
        hours: that the whole run may take.
        image_size: pixels a side; None: what suits images and device.

    Raises:
        MaskDMError: something does not fit. Nothing is written then.
    """
    root = root_setting(place)
    name = profile_name(place, name)
    check_new(name)
    check_no_edits()
    if not hours > 0:
        raise MaskDMError(f"--hours={hours:g}; allowed: above 0")
    if image_size is not None:
        check_side(image_size)
    recipe = load_recipe(RECIPE, ROOT)
    found = survey(place)
    check_count(found)
    side = image_size or fitting_side(found, limit=64 if device.type == "cuda" else 32)
    batch_size = 128 if device.type == "cuda" else 32
    propose = partial(settings_of, found, root, side, batch_size=batch_size, lr=recipe.optimisation.lr)
    chosen, budget = choose(propose, found, recipe, device, 3600 * hours)
    settings = chosen.settings(budget)
    params = checked(settings, found)
    check_disk(found, params)
    said, costs, warnings = found.lines(), proposed(chosen.cost, params), [*notes(found, params, recipe), *busy(device)]
    header = [f"Written by `maskdm init` for {root}", *said, *costs, *(f"note: {line}" for line in warnings)]
    path = add_profile(name, profile_text(settings, header))
    return Proposal(path, said, costs, warnings, settings, chosen.cost.seconds(params.budget.train_flops))


def choose(
    propose: Callable[..., Settings], found: Survey, recipe: Recipe, device: torch.device, seconds: float
) -> tuple[Candidate, float]:
    """The largest network that the time is enough for, with as many seeds as it allows, and the budget of an arm.

    Raises:
        MaskDMError: it is not enough for the smallest network with the fewest seeds.
    """

    def candidate_of(network: tuple[int, int, int], seeds: int) -> Candidate:
        reading = found.count * found.seconds_an_image
        return by_a_burst(partial(propose, network, seeds=seeds), recipe, device, reading)

    for seeds in SEEDS:
        chosen = None
        for network in NETWORKS:
            candidate = candidate_of(network, seeds)
            budget = candidate.cost.budget(seconds)
            if budget < candidate.least or (chosen and not candidate.is_worth(budget)):
                break
            chosen = candidate, budget
        if chosen is not None:
            candidate = chosen[0].measured(chosen[1], device)
            budget = two_digits(0.97 * candidate.cost.budget(seconds))  # rounding may go up
            if budget >= candidate.least:
                return candidate, budget
    smallest = candidate_of(NETWORKS[0], SEEDS[-1])
    enough = 1.1 * smallest.least  # more than the rounding takes away
    least = smallest.measured(enough, device).cost.seconds(enough)
    raise MaskDMError(
        f"--hours={seconds / 3600:g}: the smallest network takes about {duration(least)} here, with {SEEDS[-1]} seeds; "
        f"allowed: from {least / 3600:.2g}, or a smaller --image-size"
    )


def by_a_burst(settings: Callable[..., Settings], recipe: Recipe, device: torch.device, reading: float) -> Candidate:
    """A network on this machine, of which only dense steps and the extractor are measured."""
    params = validated(Params, settings(train_flops=PLENTY), "proposal")
    workers = take_threads(len(params.seeds), count_processes(len(params.seeds)))
    speed = rough_speed(params, recipe, device)
    return Candidate(
        lambda budget: settings(train_flops=budget), Cost(params, recipe, speed, workers, reading, of_search=SEARCH)
    )


def checked(settings: Settings, found: Survey) -> Params:
    """The settings as all stages will check them.

    Raises:
        MaskDMError: they do not fit each other, or the images.
    """
    params = validated(Params, settings, "proposal")
    recipe = load_recipe(params.recipe, ROOT)
    heldout = params.data.holdout or found.heldout or 0
    check_reference(params.evaluation, found.usable - heldout)
    floor_counts(params.evaluation, found.usable - heldout, heldout)
    for arm in params.arms:
        arm_plans(params, recipe, arm)
    return params


def proposed(cost: Cost, params: Params) -> list[str]:
    """What was chosen and what it costs, a fact a line."""
    plan, data, model = arm_plans(params, cost.recipe, BASELINE)[-1], params.data, params.model
    colour = "grey" if data.channels == 1 else "colour"
    rows, columns = params.grid
    runs, _ = count_search_runs(params)
    return [
        f"images as {data.image_size}x{data.image_size} pixels in {colour}: {rows}x{columns} tokens of "
        f"{model.patch_size}x{model.patch_size} pixels",
        f"{model.in_words()}: {size_in_millions(params):.2g} M parameters",
        f"arms {', '.join(params.arms)}, with {len(params.seeds)} seeds and {si(params.budget.train_flops, 'FLOPs')} "
        f"each; {BASELINE}: {plan.steps:,} steps of {plan.batch_size} images",
        f"a search of {runs} runs of {si(params.search.train_flops, 'FLOPs')} each",
        f"judged by {params.evaluation.samples:,} samples against {params.evaluation.reference:,} images",
        f"measured here: {si(cost.workers * cost.speed.arms, 'FLOP/s')}, {cost.workers} trial(s) at a time; all of it "
        f"takes about {duration(cost.seconds(params.budget.train_flops))}",
    ]


def busy(device: torch.device) -> Iterator[str]:
    """A note where other programs took a part of the speed that was measured."""
    load, cores = os.getloadavg()[0], count_cores()
    if device.type == "cpu" and load > cores + 1:  # the burst itself is a load, too
        yield (
            f"This machine was busy (a load of {load:.1f} on {cores} cores): its speed was measured beside other "
            "programs. Where it is idle, the budget may be larger."
        )


def root_setting(place: Path) -> str:
    """`data.root` of a place: relative to the project where it lies inside.

    Raises:
        MaskDMError: there is no such place, it is the project's own, or settings cannot name it.
    """
    if not place.exists():
        raise MaskDMError(f"{place}: no such folder or archive")
    real, project = Path(os.path.realpath(place)), Path(os.path.realpath(ROOT))
    if project.is_relative_to(real):
        raise MaskDMError(f"{place}: holds the project itself; allowed: a folder of images alone, or an archive")
    inside = real.is_relative_to(project)
    if inside and any(real.is_relative_to(project / own) for own in OWN):
        raise MaskDMError(f"{place}: the project writes there itself; allowed: data/raw/, or outside of the project")
    text = str(real.relative_to(project) if inside else real)
    if "$" in text or text.startswith("~") or not text.isprintable():
        raise MaskDMError(f"{text!r}: settings cannot name this path; allowed: without $, ~ and unprintable characters")
    return text


def profile_name(place: Path, name: str | None) -> str:
    """The name as given, or that of the folder in small letters.

    Raises:
        MaskDMError: a profile cannot have the name.
    """
    stem = place.name.split(".")[0] if place.is_file() else place.name
    chosen = (
        re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_").lstrip("-_0123456789") or "images"
        if name is None
        else name
    )
    try:
        return TypeAdapter(Name).validate_python(chosen)
    except ValidationError:
        raise MaskDMError(f"--name={chosen}; allowed: small letters, digits, _ and -, a letter first") from None


def check_disk(found: Survey, params: Params) -> None:
    """Refuse images that the disk has no room for once they are prepared: twice, as the old ones stay until the end.

    Raises:
        MaskDMError: so it is.
    """
    needed = found.usable * params.data.channels * params.data.image_size**2
    place = PREPARED.parent if PREPARED.parent.is_dir() else ROOT
    if (free := shutil.disk_usage(place).free) < needed:
        raise MaskDMError(
            f"{place.absolute()}: {si(free, 'B')} are free; the prepared images take {si(needed, 'B')}; allowed: a "
            "smaller --image-size, or another disk"
        )
