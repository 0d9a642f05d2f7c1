"""The search for a pre-training: what it chooses from, and the study that chooses. The only file that imports Optuna.

A study's trials all spend the same compute, and the lower held-out loss at the end wins. Workers share a study through
its storage: a journal file on one machine, a database for several.
"""

import hashlib
import math
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from filelock import FileLock
from optuna.importance import get_param_importances
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, fail_stale_trials
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, Trial, TrialState

from maskdm.analysis import mask_name
from maskdm.config import BlockMask, CropMask, Mask, MaskedPhase, PatchMask, Phase, SearchSpace, effective_mask_ratio
from maskdm.errors import MaskDMError, StoppedEarly

Grid = tuple[int, int]

PAPER_RATIO, PAPER_SHARE = 0.9, 0.25  # 200 k masked steps of 256 images beside fine-tuning: a quarter of the compute
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
WHOLE = 1000  # the step of a trial's end: steps are permille of its compute
WAIT_SECONDS = 1.0
HEARTBEAT_SECONDS, GRACE_SECONDS = 20, 60  # a database's: when a worker that is silent counts as dead
NUMBER = "number"  # attribute of a trial that goes on with one whose worker died: that one's number


class _KernelLock(JournalFileOpenLock):
    """Who is killed holds it no longer. Optuna's own locks are files, which a killed worker leaves behind for others to
    wait for, without end where the journal's path is relative.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        """Wait for it."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()


class _SurplusError(Exception):
    """Another worker has begun the last trial at the same moment."""


# --- the space ----------------------------------------------------------------------------------------------


def feasible_masks(space: SearchSpace, grid: Grid) -> dict[str, dict[float, Mask]]:
    """The masks that fit the grid: kind (`patch`, `block2`, `crop`) -> ratio, or side of the crop -> mask.

    Of ratios that keep equally many tokens only the first is taken: they are one mask.
    """
    masks: dict[str, dict[float, Mask]] = {}
    if "patch" in space.strategies:
        masks["patch"] = {ratio: PatchMask(strategy="patch", ratio=ratio) for ratio in space.ratios}
    if "block" in space.strategies:
        for side in space.blocks:
            blocks = {ratio: BlockMask(strategy="block", ratio=ratio, block=side) for ratio in space.ratios}
            masks[f"block{side}"] = dict(blocks)
    if "crop" in space.strategies:
        masks["crop"] = {side: CropMask(strategy="crop", crop=side) for side in space.crops}
    fitting = {kind: _distinct(choices, grid) for kind, choices in masks.items()}
    return {kind: choices for kind, choices in fitting.items() if choices}


def _distinct(choices: dict[float, Mask], grid: Grid) -> dict[float, Mask]:
    kept: dict[int, float] = {}
    for value, mask in choices.items():
        if fits(mask, grid):
            kept.setdefault(mask.num_keep(grid), value)
    return {value: choices[value] for value in kept.values()}


def fits(mask: Mask, grid: Grid) -> bool:
    """Whether the mask keeps some tokens of the grid and removes some."""
    try:
        mask.num_keep(grid)
    except ValueError:
        return False
    return True


def half_mask(mask: Mask, grid: Grid) -> Mask | None:
    """The mask of a second phase: about half as much is removed (the authors' 90 % -> 50 %); None if none fits."""
    if isinstance(mask, CropMask):
        kept = 1 - effective_mask_ratio(mask, grid) / 2
        half: Mask = CropMask(strategy="crop", crop=round(math.sqrt(kept * grid[0] * grid[1])))
    else:
        half = mask.model_copy(update={"ratio": mask.ratio / 2})
    return half if fits(half, grid) and half.num_keep(grid) > mask.num_keep(grid) else None


def suggest(trial: BaseTrial, space: SearchSpace, grid: Grid) -> tuple[MaskedPhase, ...]:
    """The masked phases of a trial. What it is asked for depends on the mask: a ratio or a side, one phase or two.

    Two phases share the compute equally. Numbers are rounded to what a settings file would say.
    """
    masks = feasible_masks(space, grid)
    kind = trial.suggest_categorical("mask", list(masks))
    name = "crop" if kind == "crop" else f"{kind}_ratio"
    mask = masks[kind][trial.suggest_categorical(name, list(masks[kind]))]
    second = half_mask(mask, grid) if space.max_phases == 2 else None
    count = trial.suggest_categorical("phases", [1, 2]) if second else 1
    share = round(trial.suggest_float("share", *space.share) / count, 3)
    batch_size = trial.suggest_categorical("batch_size", list(space.batch_sizes))
    lr = float(f"{trial.suggest_float('lr', *space.lr, log=True):.3g}")
    return tuple(
        MaskedPhase(mask=each, share=share, batch_size=batch_size, override={"lr": lr})
        for each in (mask, second)[:count]
        if each
    )


def phases_of(trial: FrozenTrial, space: SearchSpace, grid: Grid) -> tuple[MaskedPhase, ...]:
    """What `suggest` gave a trial that is over."""
    return suggest(FixedTrial(trial.params), space, grid)


def paper_phases(space: SearchSpace, grid: Grid, finetune: Phase) -> tuple[MaskedPhase, ...]:
    """The paper's default: the largest blocks of the space at 90 %, twice fine-tuning's batch, the recipe's lr.

    On a grid too small for that, smaller blocks, and at last a lower ratio of the space.
    """
    for ratio in sorted({PAPER_RATIO, *(ratio for ratio in space.ratios if ratio < PAPER_RATIO)}, reverse=True):
        sides = sorted({1, *space.blocks}, reverse=True)
        for mask in (BlockMask(strategy="block", ratio=ratio, block=side) for side in sides):
            if fits(mask, grid):
                return (MaskedPhase(mask=mask, share=PAPER_SHARE, batch_size=2 * finetune.batch_size),)
    raise MaskDMError(f"search.space.ratios: none fits the {grid[0]}x{grid[1]} token grid")


# --- the study ----------------------------------------------------------------------------------------------


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """A database, or without a `url` a journal in `folder`.

    Raises:
        MaskDMError: the database does not answer, or its driver is not installed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
    if url is None:
        folder.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(folder / "journal.log"), _KernelLock(folder / "journal.lock")))
    try:
        return RDBStorage(
            url,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=_enqueue_again,
        )
    except Exception as error:  # SQLAlchemy's, the driver's, Optuna's, or ImportError
        where = re.sub(r"//[^/@]+@", "//", url)  # without a password
        raise MaskDMError(f"storage {where}: {' '.join(str(error).split())[:300].replace(url, where)}") from None


def open_study(storage: BaseStorage, name: str, key: tuple[Any, ...], space: SearchSpace, trials: int) -> optuna.Study:
    """The study, created at first use. What it draws depends on `key` and on how many trials there are already.

    The first third of the trials is drawn at random, the others by TPE. A trial is pruned if its held-out loss is above
    the median of those before, and not before the longest pre-training is over: what a network that has never seen a
    whole image loses on whole images says little.
    """
    startup = max(2, trials // 3)
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    draws = hashlib.blake2b(repr((key, len(study.get_trials(deepcopy=False)))).encode(), digest_size=4).digest()
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=startup, seed=int.from_bytes(draws, "big"))
    study.pruner = optuna.pruners.MedianPruner(startup, n_warmup_steps=round(WHOLE * space.share[1]))
    return study


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Those that count, pruned ones too, in the order in which they ended."""
    return sorted(study.get_trials(deepcopy=False, states=FINISHED), key=lambda trial: str(trial.datetime_complete))


def best_trials(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """The `count` best of those that were trained to the end."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: (trial.value, trial.number))[:count]


def trial_number(trial: Trial | FrozenTrial) -> int:
    """Its number, or that of the trial that it goes on with."""
    return int(trial.user_attrs.get(NUMBER, trial.number))


def revive(study: optuna.Study) -> None:
    """Fail trials that nobody works at any more, and let others go on with them where they were.

    A journal has no heartbeat: there, nobody may be at work.
    """
    if isinstance(study._storage, RDBStorage):
        fail_stale_trials(study)
        return
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        _enqueue_again(study, trial)


def _enqueue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    study.enqueue_trial(trial.params, user_attrs={NUMBER: trial_number(trial)})


def run_trials(study: optuna.Study, count: int, objective: Callable[[Trial], float]) -> None:
    """Work at the study until `count` of its trials have finished, here or elsewhere.

    Args:
        study: whose other workers do the same.
        count: of trials that are trained to the end or pruned.
        objective: returns the loss; raises `StoppedEarly` where `report` does. On KeyboardInterrupt another worker, or
            the next run, goes on with the trial; any other exception fails it, and is raised.
    """
    while (missing := count - len(finished_trials(study))) > 0:
        if len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))) >= missing:
            time.sleep(WAIT_SECONDS)  # others are at the last ones; if they die, theirs are to be done
            fail_stale_trials(study)  # of a database; a journal's are revived by the next run
            continue
        study.optimize(lambda trial: _run(study, trial, count, objective), n_trials=1, catch=(_SurplusError,))


def _run(study: optuna.Study, trial: Trial, count: int, objective: Callable[[Trial], float]) -> float:
    taken = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
    if sum(other.number < trial.number for other in taken) >= count:
        raise _SurplusError
    try:
        return objective(trial)
    except StoppedEarly as stopped:
        raise optuna.TrialPruned(str(stopped)) from None
    except KeyboardInterrupt:
        _enqueue_again(study, study._storage.get_trial(trial._trial_id))
        raise


def report(trial: Trial, share: float, loss: float) -> None:
    """Tell the study a trial's held-out loss at a share of its compute.

    Raises:
        StoppedEarly: the trial is not worth more compute.
    """
    step = round(WHOLE * share)
    trial.report(loss, step)
    if step < WHOLE and trial.should_prune():
        raise StoppedEarly(f"held-out loss {loss:.4g} at {share:.0%} of the compute")


# --- results ------------------------------------------------------------------------------------------------


def trials_frame(study: optuna.Study, space: SearchSpace, grid: Grid) -> pd.DataFrame:
    """One row a trial that has finished, in the order in which they ended.

    Columns: `trial` (its number), `state`, `share_spent` (of its compute, below 1 if it was pruned), `heldout_loss`
    (there), `masks` (in words), `mask` (kind), `effective_mask_ratio` (of the first phase), `phases`, `share` (of all
    masked phases), `batch_size`, `lr`.
    """
    return pd.DataFrame([_row(trial, phases_of(trial, space, grid), grid) for trial in finished_trials(study)])


def _row(trial: FrozenTrial, phases: tuple[MaskedPhase, ...], grid: Grid) -> dict[str, Any]:
    last = max(trial.intermediate_values, default=WHOLE)
    complete = trial.state == TrialState.COMPLETE
    return {
        "trial": trial_number(trial),
        "state": trial.state.name.lower(),
        "share_spent": 1.0 if complete else last / WHOLE,
        "heldout_loss": trial.value if complete else trial.intermediate_values.get(last, math.nan),
        "masks": " -> ".join(mask_name(phase.mask) for phase in phases),
        "mask": trial.params["mask"],
        "effective_mask_ratio": effective_mask_ratio(phases[0].mask, grid),
        "phases": len(phases),
        "share": round(sum(phase.share for phase in phases), 3),
        "batch_size": phases[0].batch_size,
        "lr": phases[0].override["lr"],
    }


def curves_frame(study: optuna.Study) -> pd.DataFrame:
    """The held-out losses on the way: `trial`, `share_spent`, `heldout_loss`."""
    rows = [
        {"trial": trial_number(trial), "share_spent": step / WHOLE, "heldout_loss": loss}
        for trial in finished_trials(study)
        for step, loss in sorted(trial.intermediate_values.items())
    ]
    return pd.DataFrame(rows, columns=["trial", "share_spent", "heldout_loss"])


def importance_frame(study: optuna.Study) -> pd.DataFrame:
    """How much each parameter decides whether a trial is among the good ones (PED-ANOVA): `parameter`, `importance`.

    Empty if the trials do not suffice.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a few trials are few for conditional parameters
            found = get_param_importances(study)
    except (RuntimeError, ValueError):  # fewer than two trials, or all of them equal
        found = {}
    ordered = sorted(found, key=lambda name: -found[name])
    return pd.DataFrame({"parameter": ordered, "importance": [found[name] for name in ordered]})
