"""How much of the comparison is left to do: said at its start, and by the bar of every stage."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.config.study import DEFAULT
from maskdm.engine.dry_run import duration, measure_rate
from maskdm.engine.judge import judging_flops
from maskdm.engine.project import Project
from maskdm.engine.sharing import count_processes, take_threads
from maskdm.engine.train import load_training
from maskdm.engine.trial import trial_identity
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import ROOT, stage_folder
from maskdm.runtime.processes import ALONE
from maskdm.runtime.progress import Work
from maskdm.runtime.units import si
from maskdm.tracking.records import read_record
from maskdm.training.plan import arm_plans


def outlook(params: Params, recipe: Recipe, device: torch.device) -> str:
    """What `dvc repro` has to do, and about how long that takes here by a burst of the baseline's steps."""
    workers = take_threads(len(params.seeds), count_processes(len(params.seeds)))
    rate = workers * measure_rate(params, recipe, arm_plans(params, recipe, params.baseline)[-1], device)
    sizes = stage_sizes(params, recipe)
    seeds, search = len(params.seeds), params.search
    left = sum(sizes.values()) * seeds - done_flops(params, sizes)
    runs, searching = search_size(params, recipe)
    return (
        f"{len(params.arms)} arms x {seeds} seeds of {si(params.budget.train_flops, 'FLOPs')}, {workers} at a time: "
        f"about {duration(left / rate)} left of training and judging here. A search of {runs} runs of "
        f"{si(search.train_flops, 'FLOPs')}: about {duration(searching / rate)}, if it is not done. Preparing the data "
        "and reporting come on top. What is done is not done again."
    )


def search_size(params: Params, recipe: Recipe) -> tuple[int, float]:
    """How many runs the search has, and about the FLOPs of all of them and of judging."""
    runs, confirming = count_search_runs(params)
    judging = judging_flops(params, recipe) / len(params.budget.snapshots)
    return runs, runs * params.search.train_flops + confirming * judging


def count_search_runs(params: Params) -> tuple[int, int]:
    """The runs of the search: all of them, and those that confirm its best, the paper's default and scratch."""
    search = params.search
    confirming = (search.confirm + 2) * len(search.confirm_seeds)
    return search.trials + confirming, confirming


def whole_run(params: Params, recipe: Recipe, stage: str, arm: str) -> Work:
    """The whole comparison, of which one stage of one arm is at work now."""
    sizes, count = stage_sizes(params, recipe), len(params.seeds)
    own, total = sizes[stage, arm], sum(sizes.values()) * count
    done = done_flops(params, {key: size for key, size in sizes.items() if key != (stage, arm)})
    start = sizes["pretrain", arm] if stage == "finetune" else 0.0
    return Work([own] * count, before=done, after=total - done - own * count, start=start)


def stage_sizes(params: Params, recipe: Recipe) -> dict[tuple[str, str], float]:
    """About the FLOPs of each stage of each arm, with one seed."""
    judging, sizes = judging_flops(params, recipe), dict[tuple[str, str], float]()
    for arm, phases in params.arms.items():
        before = sum(phase.share or 0.0 for phase in phases) * params.budget.train_flops
        sizes["pretrain", arm], sizes["finetune", arm] = before, params.budget.train_flops - before
        sizes["evaluate", arm] = judging
    return sizes


def done_flops(params: Params, sizes: Mapping[tuple[str, str], float]) -> float:
    """How many of them are behind the comparison: of stages that have left what they leave at their end.

    What other settings or other data have left counts as not done.
    """
    try:
        project = replace(Project.open(ALONE), params=params)
    except MaskDMError:  # no data yet, so nothing is done; whoever trains says what is wrong
        return 0.0
    return sum(
        size
        for (stage, arm), size in sizes.items()
        for seed in params.seeds
        if _is_done(stage, project.trial(arm, seed))
    )


def _is_done(stage: str, trial: Project) -> bool:
    arm, seed = trial.params.arm, trial.params.seed
    if stage == "evaluate":
        found = read_record(ROOT, DEFAULT, f"{arm}/{seed}")
        return found is not None and found[0].identity == trial_identity(trial, judged=True)
    path = stage_folder(stage, arm, seed) / "training.json"
    return path.is_file() and load_training(path.parent)[0].trial == trial_identity(trial, judged=False)
