"""The search for a pre-training: what it chooses from, and the study that chooses. The only file that imports Optuna.

A study's trials all spend the same compute, and the lower held-out loss at the end wins. Trial n is drawn, and pruned,
by what the trials up to n - `parallel` came to, whichever of the others are done by then. So the same seed tries the
same trials and finds the same best, whatever the number and the speed of the workers, killed and resumed or not.
Workers share a study through a database: a file on one machine, a server for several.
"""

import functools
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from filelock import FileLock
from optuna.importance import get_param_importances
from optuna.storages import RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat, get_heartbeat_thread, is_heartbeat_enabled
from optuna.storages._rdb.models import TrialModel
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, Trial, TrialState
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from maskdm.config.comparison import Phase, methods_in_words
from maskdm.config.masks import BlockMask, CropMask, Mask, PatchMask, effective_mask_ratio, fits
from maskdm.config.params import Search, SearchSpace
from maskdm.config.tuning import Dimension
from maskdm.runtime.errors import DivergedError, MaskDMError, StoppedEarly
from maskdm.runtime.files import reason, sqlite_url
from maskdm.runtime.urls import without_passwords

Grid = tuple[int, int]

PAPER_RATIO, PAPER_SHARE = 0.9, 0.25  # 200 k masked steps of 256 images beside fine-tuning: a quarter of the compute
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
RANDOM_TRIALS = 8  # drawn at random; the others by TPE
DRAWING = (RANDOM_TRIALS, optuna.__version__)  # what decides which trials are drawn, beside the settings and the seed
DATABASE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
START_TRIALS = 4  # of a tuning: drawn at random
WORST = 1e3  # what a training that diverged counts as: a Gaussian process takes no infinity
WHOLE = 1000  # the step of a trial's end: steps are permille of its compute
WAIT_SECONDS = 0.5
HEARTBEAT_SECONDS, GRACE_SECONDS = 20, 60  # on a server: when a worker that is silent counts as dead
LOOPBACK = "127.0.0.1"
NO_STUDY = "`dvc repro search` makes it, `dvc repro study/dvc.yaml:large_search` the large one"
PATIENCE_SECONDS = 600  # how long workers wait for a server that has gone: it may be restarted
BUSY_SECONDS = 60  # how long a worker waits for another one that writes to the same file


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


def half_mask(mask: Mask, grid: Grid) -> Mask | None:
    """The mask of a second phase: about half as much is removed (the authors' 90 % -> 50 %); None if none fits."""
    if isinstance(mask, PatchMask | BlockMask):
        half: Mask = mask.model_copy(update={"ratio": mask.ratio / 2})
    else:
        kept = 1 - effective_mask_ratio(mask, grid) / 2
        half = CropMask(strategy="crop", crop=round(math.sqrt(kept * grid[0] * grid[1])))
    return half if fits(half, grid) and half.num_keep(grid) > mask.num_keep(grid) else None


def suggest(trial: BaseTrial, space: SearchSpace, grid: Grid) -> tuple[Phase, ...]:
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
        Phase(mask=each, share=share, batch_size=batch_size, override={"lr": lr})
        for each in (mask, second)[:count]
        if each
    )


def proposed_masks(space: SearchSpace, grid: Grid) -> list[Mask]:
    """Every mask that a trial may have, of its first masked phase or of its second."""
    first = [mask for choices in feasible_masks(space, grid).values() for mask in choices.values()]
    second = [half_mask(mask, grid) for mask in first] if space.max_phases == 2 else []
    return [*first, *(mask for mask in second if mask)]


def phases_of(trial: FrozenTrial, space: SearchSpace, grid: Grid) -> tuple[Phase, ...]:
    """What `suggest` gave a trial that is over."""
    return suggest(FixedTrial(trial.params), space, grid)


def paper_phases(space: SearchSpace, grid: Grid, finetune: Phase) -> tuple[Phase, ...]:
    """The paper's default: the largest blocks of the space at 90 %, twice fine-tuning's batch, the recipe's lr.

    On a grid too small for that, smaller blocks, and at last a lower ratio of the space. In a space of crops alone, its
    crop that is nearest to 90 %.
    """
    if set(space.strategies) == {"crop"}:
        crops = [CropMask(strategy="crop", crop=side) for side in space.crops]
        crop = min(
            (crop for crop in crops if fits(crop, grid)),
            key=lambda crop: abs(effective_mask_ratio(crop, grid) - PAPER_RATIO),
        )
        return (Phase(mask=crop, share=PAPER_SHARE, batch_size=2 * finetune.batch_size),)
    for ratio in sorted({PAPER_RATIO, *(ratio for ratio in space.ratios if ratio < PAPER_RATIO)}, reverse=True):
        sides = sorted({1, *space.blocks}, reverse=True)
        for mask in (BlockMask(strategy="block", ratio=ratio, block=side) for side in sides):
            if fits(mask, grid):
                return (Phase(mask=mask, share=PAPER_SHARE, batch_size=2 * finetune.batch_size),)
    raise MaskDMError(f"search.space.ratios: none fits the {grid[0]}x{grid[1]} token grid")


# --- the study ----------------------------------------------------------------------------------------------


def open_storage(url: str | None, folder: Path) -> RDBStorage:
    """The database at `url`, of which only a server's can be shared by machines; without one, a file in `folder`.

    Raises:
        MaskDMError: the database is no server's, does not answer, is damaged, or its driver is not installed.
    """
    if url is not None and url.startswith("sqlite"):
        raise MaskDMError(
            f"storage {without_passwords(url)}: of a file two workers may take the same trial; allowed: the database "
            "of a server, or none on one machine, where the search keeps a file itself"
        )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats, samplers
    warnings.filterwarnings("ignore", "Heartbeat of storage")  # is kept here, too: `run_trials`
    try:
        if url is None:
            folder.mkdir(parents=True, exist_ok=True)
            options = {"connect_args": {"timeout": BUSY_SECONDS}}
            return RDBStorage(sqlite_url(study_file(folder)), engine_kwargs=options)
        return _PatientStorage(
            url,
            engine_kwargs={"pool_pre_ping": True},  # connections end with the server that they were made to
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
        )
    except Exception as error:  # SQLAlchemy's, the driver's, Optuna's, or ImportError
        raise MaskDMError(_database_failure(error, url, folder)) from None


class _PatientStorage(RDBStorage):
    """A server's database. What fails because the server is away is tried again until it is back."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._silent: dict[int, float] = {}  # trials without a sign of life -> since when this process knows

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """Those that are silent for longer than a heartbeat takes after a server was away for all.

        Also those whose worker died between claiming them and the first heartbeat, which Optuna would not count.
        """
        with self.scoped_session() as session:
            running = session.query(TrialModel).filter_by(study_id=study_id, state=TrialState.RUNNING)
            mute: list[Any] = running.filter(~TrialModel.heartbeats.any()).all()
            long_ago = datetime.now() - timedelta(seconds=GRACE_SECONDS)
            lost = [int(trial.trial_id) for trial in mute if trial.datetime_start < long_ago]
        now = time.monotonic()
        silent = [*super()._get_stale_trial_ids(study_id), *lost]
        self._silent = {trial_id: self._silent.get(trial_id, now) for trial_id in silent}
        return [trial_id for trial_id, since in self._silent.items() if now - since > HEARTBEAT_SECONDS]


def _patiently(call: Callable[..., Any]) -> Callable[..., Any]:
    """Try a call of a storage again while the server is away.

    One that failed may have come through, and only its answer was lost: a trial that is already over was ended by it. A
    trial that was claimed so, and is in nobody's hands, falls silent and is revived.
    """

    @functools.wraps(call)
    def again(*arguments: Any, **options: Any) -> Any:
        began, failed = time.monotonic(), False
        while True:
            try:
                return call(*arguments, **options)
            except optuna.exceptions.UpdateFinishedTrialError:
                if not failed:
                    raise
                return True
            except DATABASE_ERRORS as error:
                if not _is_away(error) or time.monotonic() - began > PATIENCE_SECONDS:
                    raise
                failed = True
            time.sleep(WAIT_SECONDS)

    return again


def _is_away(error: BaseException) -> bool:
    causes: list[BaseException | None] = [error]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    return any(isinstance(cause, OperationalError | InterfaceError) for cause in causes)


for _name in (  # what Optuna's cache, which stands before a storage, asks it for and tells it
    *("get_study_id_from_name", "get_study_directions", "get_study_system_attrs", "get_trial", "_get_trials"),
    *("_create_new_trial", "_set_trial_param", "set_trial_state_values", "set_trial_intermediate_value"),
    *("set_trial_system_attr", "record_heartbeat", "_get_stale_trial_ids"),
):
    setattr(_PatientStorage, _name, _patiently(getattr(_PatientStorage, _name)))


def study_file(folder: Path) -> Path:
    """Where the study of one machine is kept."""
    return folder / "study.db"


@contextmanager
def one_line_failures(url: str | None, folder: Path) -> Iterator[None]:
    """Turn what the database raises in the `with` block into one line that names it and says what to do.

    Raises:
        MaskDMError: in place of the database's errors.
    """
    try:
        yield
    except DATABASE_ERRORS as error:
        raise MaskDMError(_database_failure(error, url, folder)) from None


def _database_failure(error: BaseException, url: str | None, folder: Path) -> str:
    cause = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__ or cause
    said = " ".join(str(cause).split())[:300] or type(cause).__name__
    if url is None:
        return (
            f"{study_file(folder)}: {said}; the same command goes on; if the file is damaged, delete it: "
            "recorded trials are not trained again"
        )
    if "table schema" in said:  # Optuna finds another's version number, and names its own
        said += "; allowed: a database that no other program, such as MLflow, and no other version of Optuna uses"
    return without_passwords(f"storage {url}: {said}")


def open_study(storage: RDBStorage, name: str, trials: int) -> optuna.Study:
    """The study `name` with at least `trials` trials, finished, under way or waiting; created at first use."""
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    for _ in range(trials - len(study.get_trials(deepcopy=False))):
        study.enqueue_trial({})
    return study


def serve_dashboard(storage: RDBStorage, name: str, port: int) -> None:
    """Serve Optuna's dashboard of the study `name` on this machine alone, until Ctrl-C.

    Raises:
        MaskDMError: there is no such study, or the port is taken.
    """
    from optuna_dashboard import run_server

    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        raise MaskDMError(f"study {name}: there is none yet; {NO_STUDY}") from None
    print(f"The study: http://{LOOPBACK}:{port}/dashboard/studies/{study_id}", flush=True)
    try:
        run_server(storage, LOOPBACK, port)
    except OSError as error:
        raise MaskDMError(f"--port {port}: {reason(error)}; allowed: a free one") from None


def first_trials(study: optuna.Study, count: int) -> optuna.Study:
    """A study in memory of those of the first `count` trials that have finished."""
    first = optuna.create_study()
    first.add_trials([trial for trial in finished_trials(study) if trial.number < count])
    return first


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Those that count, pruned ones too, in the order of their numbers."""
    return study.get_trials(deepcopy=False, states=FINISHED)


def best_trials(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """The `count` best of those that were trained to the end."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: (trial.value, trial.number))[:count]


def revive(study: optuna.Study) -> None:
    """Let others go on with the trials that nobody works at any more, where those were.

    On a server that is who has been silent; in a file all of them: there, nobody may be at work.
    """
    storage = study._storage
    if isinstance(storage, BaseHeartbeat) and is_heartbeat_enabled(storage):
        left = storage._get_stale_trial_ids(study._study_id)
    else:
        left = [trial._trial_id for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
    for trial_id in left:
        _release(study, trial_id)


def _release(study: optuna.Study, trial_id: int) -> None:
    study._storage.set_trial_state_values(trial_id, TrialState.WAITING)


@dataclass(frozen=True)
class Attempt:
    """A trial under way: what it trains, and whether it is worth going on.

    Attributes:
        trial: Optuna's; it has all its parameters.
        phases: what it trains before fine-tuning.
        earlier: the trials that it may know of, as a study in memory.
        pruner: says by `earlier` whether it goes on.
    """

    trial: Trial
    phases: tuple[Phase, ...]
    earlier: optuna.Study
    pruner: optuna.pruners.BasePruner

    @property
    def number(self) -> int:
        """The same, whoever trains it and how often it is begun."""
        return self.trial.number

    def report(self, share: float, loss: float) -> None:
        """Tell the study the held-out loss at a share of the trial's compute.

        Raises:
            StoppedEarly: the trial is not worth more compute.
        """
        step = round(WHOLE * share)
        reported = dict(self.trial.storage.get_trial(self.trial._trial_id).intermediate_values)
        if step not in reported:  # by a worker that was killed
            self.trial.report(loss, step)
        so_far = {at: value for at, value in reported.items() if at < step} | {step: loss}
        if step < WHOLE and self._is_poor(so_far):
            raise StoppedEarly(f"held-out loss {loss:.4g} at {share:.0%} of the compute")

    def _is_poor(self, losses: dict[int, float]) -> bool:
        so_far = optuna.trial.create_trial(state=TrialState.RUNNING, intermediate_values=losses)
        return self.pruner.prune(self.earlier, so_far)


def claim_lock(url: str | None, folder: Path) -> AbstractContextManager[object]:
    """What a worker holds while it takes a trial: SQLite, unlike a server, would let two take the same one."""
    return FileLock(folder / "claim.lock") if url is None else nullcontext()


def run_trials(
    study: optuna.Study,
    search: Search,
    grid: Grid,
    seed: int,
    objective: Callable[[Attempt], float],
    claims: AbstractContextManager[object],
) -> None:
    """Work at the study until `search.trials` of its trials have finished, here or elsewhere.

    A trial whose loss is not finite is the worst of all, and no end of the search.

    Args:
        study: whose other workers do the same.
        search: how many trials, from which space, and how many of them may run at a time.
        grid: rows and columns of tokens.
        seed: of what is drawn.
        objective: returns the loss; raises `StoppedEarly` where `report` does. On any other exception this worker ends,
            and another one, or the next run, goes on with the trial.
        claims: of `claim_lock`.
    """
    while sum(trial.number < search.trials for trial in finished_trials(study)) < search.trials:
        with claims:
            trial = _claim(study, search)
        if trial is None:  # others are at those that it would have to know of; if they die, theirs are to be done
            time.sleep(WAIT_SECONDS)
            if is_heartbeat_enabled(study._storage):
                revive(study)
            continue
        with get_heartbeat_thread(trial._trial_id, study._storage):
            try:
                loss = objective(_draw(study, trial, search, grid, seed))
                if not math.isfinite(loss):  # by the very last step: Optuna would fail the trial, and nobody repeat it
                    raise DivergedError(f"trial {trial.number}: the held-out loss became {loss}")
                study.tell(trial, loss, skip_if_finished=True)  # by a worker that took this one for dead
            except (StoppedEarly, DivergedError):
                study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            except BaseException:
                _release(study, trial._trial_id)
                raise


def _claim(study: optuna.Study, search: Search) -> Trial | None:
    """The first trial that waits, if all that it may know of have finished."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if not waiting or not _ready(study, waiting[0].number, search):
        return None
    trial = study.ask()
    if _ready(study, trial.number, search):
        return trial
    _release(study, trial._trial_id)  # another worker was quicker, and took the first one
    return None


def _ready(study: optuna.Study, number: int, search: Search) -> bool:
    finished = {trial.number for trial in finished_trials(study)}
    return number < search.trials and finished.issuperset(range(number - search.parallel + 1))


def _draw(study: optuna.Study, trial: Trial, search: Search, grid: Grid, seed: int) -> Attempt:
    """Choose what a trial trains by what those up to `parallel` before it came to.

    A trial is pruned if its held-out loss is above the median of theirs, and not before the longest pre-training is
    over: what a network that has never seen a whole image loses on whole images says little.
    """
    draws = hashlib.blake2b(repr((seed, trial.number)).encode(), digest_size=4).digest()
    sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=int.from_bytes(draws, "big"))
    earlier = first_trials(study, trial.number - search.parallel + 1)
    earlier.sampler = sampler
    drawn = earlier.ask()
    suggest(drawn, search.space, grid)
    study.sampler = optuna.samplers.PartialFixedSampler(drawn.params, optuna.samplers.RandomSampler())
    phases = suggest(trial, search.space, grid)
    pruner = optuna.pruners.MedianPruner(RANDOM_TRIALS, n_warmup_steps=round(WHOLE * search.space.share[1]))
    return Attempt(trial, phases, earlier, pruner)


# --- the settings of one arm --------------------------------------------------------------------------------


class Chooser:
    """Chooses the settings of one trial after another, by what the ones before came to (a Gaussian process).

    Args:
        space: what each setting is chosen from. The first trial has the `first` of each.
        seed: of the draws.
    """

    def __init__(self, space: Mapping[str, Dimension], seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=START_TRIALS, deterministic_objective=False)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(sampler=sampler)
        self.study.enqueue_trial({path: dimension.first for path, dimension in space.items()})
        self.space = space

    def ask(self) -> dict[str, Any]:
        """The settings of the next trial: a value for each key of the space."""
        self.trial = self.study.ask()
        return {path: _choose(self.trial, path, dimension) for path, dimension in self.space.items()}

    def tell(self, loss: float) -> None:
        """What that trial came to; infinity: it diverged."""
        self.study.tell(self.trial, loss if math.isfinite(loss) else WORST)


def _choose(trial: BaseTrial, path: str, dimension: Dimension) -> Any:
    if dimension.choices is not None:
        return trial.suggest_categorical(path, list(dimension.choices))
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.step:
        return trial.suggest_int(path, int(dimension.low), int(dimension.high), step=dimension.step)
    value = trial.suggest_float(path, dimension.low, dimension.high, log=dimension.log)
    return float(f"{value:.3g}")  # what a settings file would say


# --- results ------------------------------------------------------------------------------------------------


def trials_frame(study: optuna.Study, space: SearchSpace, grid: Grid) -> pd.DataFrame:
    """One row a trial that has finished, in the order of their numbers.

    Columns: `trial` (its number), `state`, `share_spent` (of its compute, below 1 if it was pruned), `heldout_loss`
    (there), `masks` (in words), `mask` (kind), `effective_mask_ratio` (of the first phase), `phases`, `share` (of all
    masked phases), `batch_size`, `lr`.
    """
    return pd.DataFrame([_row(trial, phases_of(trial, space, grid), grid) for trial in finished_trials(study)])


def _row(trial: FrozenTrial, phases: tuple[Phase, ...], grid: Grid) -> dict[str, Any]:
    last = max(trial.intermediate_values, default=0)
    complete = trial.state == TrialState.COMPLETE
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "share_spent": 1.0 if complete else last / WHOLE,
        "heldout_loss": trial.value if complete else trial.intermediate_values.get(last, math.nan),
        "masks": methods_in_words(phases),
        "mask": trial.params["mask"],
        "effective_mask_ratio": effective_mask_ratio(phases[0].mask, grid),
        "phases": len(phases),
        "share": round(sum(phase.share or 0.0 for phase in phases), 3),
        "batch_size": phases[0].batch_size,
        "lr": phases[0].override["lr"],
    }


def curves_frame(study: optuna.Study) -> pd.DataFrame:
    """The held-out losses on the way: `trial`, `share_spent`, `heldout_loss`."""
    rows = [
        {"trial": trial.number, "share_spent": step / WHOLE, "heldout_loss": loss}
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
    ordered = sorted(found, key=lambda name: (-found[name], name))  # Optuna orders equal ones by chance
    return pd.DataFrame({"parameter": ordered, "importance": [found[name] for name in ordered]})
