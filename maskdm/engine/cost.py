"""How long a whole `dvc repro` takes on this machine, for settings that are still to be chosen."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import median

import torch

from maskdm.config.comparison import Phase
from maskdm.config.params import SEARCH_POINTS, Data, Evaluation, Params
from maskdm.config.recipe import Recipe
from maskdm.engine.dry_run import dry_run, measure_rate
from maskdm.engine.judge import passes_a_sample
from maskdm.engine.outlook import count_search_runs
from maskdm.engine.step_time import ROUNDS, SECONDS, WARM_UP
from maskdm.evaluation.extractors import load_extractor
from maskdm.training.plan import PhasePlan, arm_plans

# Seconds, measured on two cores. To start a stage of DVC and load its libraries; to start a trial, save its state and
# hand it to MLflow; to compare the features of a snapshot's samples.
STAGE, TRIAL, COMPARING = 7.0, 4.0, 3.0
FIXED_STAGES, STAGES_OF_AN_ARM = 8, 3  # of dvc.yaml
BATCHES = 6  # of an extractor's burst


@dataclass(frozen=True)
class Speed:
    """What one trial gets of this machine."""

    dense: float  # FLOP/s of the baseline's steps
    arms: float  # of all phases of all arms
    search: float  # of a search's trials, whose batches are smaller
    extracting: float  # images/s


@dataclass(frozen=True)
class Cost:
    """Of a comparison and its search, whose budgets grow together."""

    params: Params
    recipe: Recipe
    speed: Speed
    workers: int  # trials at a time
    reading: float  # seconds to prepare the images
    of_search: float  # a search trial's compute, as a share of an arm's

    def seconds(self, budget: float) -> float:
        """What the whole run takes with `budget` FLOPs for each trial of an arm."""
        return self.beside + self._training * budget

    def budget(self, seconds: float) -> float:
        """The FLOPs of a trial of an arm that the time allows; 0 or less: none."""
        return (seconds - self.beside) / self._training

    @cached_property
    def dense(self) -> PhasePlan:
        """The baseline's last phase."""
        return arm_plans(self.params, self.recipe, self.params.baseline)[-1]

    @property
    def trials(self) -> int:
        """Of all arms, with all seeds."""
        return len(self.params.arms) * len(self.params.seeds)

    @property
    def _training(self) -> float:
        """Seconds for each FLOP of a trial's budget."""
        runs, _ = count_search_runs(self.params)
        return (self.trials / self.speed.arms + runs * self.of_search / self.speed.search) / self.workers

    @cached_property
    def beside(self) -> float:
        """Seconds that the budget does not change: all but the steps."""
        params = self.params
        runs, confirming = count_search_runs(params)
        stages = STAGE * (FIXED_STAGES + STAGES_OF_AN_ARM * len(params.arms))
        starts = TRIAL * (2 * self.trials + runs)  # an arm's trial is trained in two stages
        losses = self._heldout * (params.heldout.points * self.trials + SEARCH_POINTS * runs)
        judging = self._judging * (len(params.budget.snapshots) * self.trials + confirming)
        timing = min(SECONDS, (WARM_UP + ROUNDS) * self._one_of_each)
        real = (params.evaluation.reference + params.evaluation.samples) / (self.speed.extracting * self.workers)
        return self.reading + stages + (starts + losses + judging) / self.workers + timing + real

    @property
    def _forward(self) -> float:
        """Seconds an image takes to pass the network: a third of a training pass."""
        return self.dense.flops_per_image / 3 / self.speed.dense

    @property
    def _heldout(self) -> float:
        """Seconds of one held-out loss."""
        return self.params.heldout.images * self._forward

    @property
    def _judging(self) -> float:
        """Seconds to judge a snapshot: to draw samples, to look at them, and to compare."""
        an_image = passes_a_sample(self.params.sampling) * self._forward + 1 / self.speed.extracting
        return self.params.evaluation.samples * an_image + COMPARING

    @property
    def _one_of_each(self) -> float:
        """Seconds of a step of every phase."""
        return sum(map(len, self.params.arms.values())) * self.dense.step_flops / self.speed.arms


def rough_speed(params: Params, recipe: Recipe, device: torch.device) -> Speed:
    """By a burst of dense steps, and one of the extractor."""
    rate = measure_rate(params, recipe, arm_plans(params, recipe, params.baseline)[-1], device)
    return Speed(rate, rate, rate, _extraction_rate(params.data, params.evaluation, device))


def exact_speed(params: Params, recipe: Recipe, device: torch.device, rough: Speed) -> Speed:
    """By bursts of every kind of step: on few tokens a step takes longer than its FLOPs say."""
    search = params.search
    masked = next(phases[0] for phases in params.arms.values() if len(phases) > 1)
    trials = {"searched": (masked, search.finetune), params.baseline: (search.finetune,)}
    arms = _mean_rate(params, params.arms, recipe, device)
    return Speed(rough.dense, arms, _mean_rate(params, trials, recipe, device), rough.extracting)


@cache
def _extraction_rate(data: Data, evaluation: Evaluation, device: torch.device) -> float:
    """Images/s that the extractor looks at, by a few batches of random ones. Whatever the network, so measured once."""
    extractor = load_extractor(evaluation, device)
    images = torch.randint(256, (evaluation.batch_size, data.channels, data.image_size, data.image_size)).byte()
    times = []
    for _ in range(BATCHES):
        started = time.perf_counter()
        extractor(images)
        times.append(time.perf_counter() - started)
    return len(images) / median(times[1:])


def _mean_rate(params: Params, arms: Mapping[str, tuple[Phase, ...]], recipe: Recipe, device: torch.device) -> float:
    """FLOP/s over all phases of `arms`."""
    phases = dry_run(params.model_copy(update={"arms": arms}), recipe, device)
    return sum(phase.flops for phase in phases) / sum(phase.seconds for phase in phases)
