"""A search at work: its workers, what each trial trains, the runs that confirm the best, and the results.

Workers are processes of one GPU, or of some cores, each. They train the trials, then the best of them, the paper's
default and scratch with seeds that the search never saw.
"""

import os
import signal
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML
from tqdm import tqdm

from maskdm.config.comparison import Budget, Phase
from maskdm.config.params import BUDGET_TOLERANCE, SEARCH_POINTS, Params
from maskdm.config.params import Search as SearchSettings
from maskdm.config.reading import load_block, load_params
from maskdm.engine.project import Project, identity
from maskdm.engine.trial import recorded, run_trial
from maskdm.engine.workers import load_libraries, settle, visible_gpus
from maskdm.runtime.errors import MaskDMError, exit_with_one_line
from maskdm.runtime.files import write_atomically, write_csv
from maskdm.runtime.paths import ROOT, SEARCH_REPORTS, STUDY, STUDY_REPORTS
from maskdm.runtime.processes import ALONE
from maskdm.runtime.progress import bar_interval
from maskdm.runtime.threads import count_cores
from maskdm.search import (
    DRAWING,
    NO_STUDY,
    Attempt,
    best_trials,
    claim_lock,
    curves_frame,
    feasible_masks,
    finished_trials,
    first_trials,
    importance_frame,
    one_line_failures,
    open_storage,
    open_study,
    paper_phases,
    phases_of,
    proposed_masks,
    run_trials,
    serve_dashboard,
    study_file,
    trials_frame,
)
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import Stage, fold_records
from maskdm.training.loop import Row
from maskdm.training.plan import plan_finetune

if TYPE_CHECKING:
    from optuna import Study

VARIABLE = "MASKDM_SEARCH_STORAGE"  # not in params.yaml: the URL may hold a password
POLL_SECONDS = 1.0
BEST, SCRATCH = "searched", "scratch"  # the arm in best.yaml, and the one that others are compared with


@dataclass(frozen=True)
class Place:
    """Where a search has its settings and leaves its results."""

    stage: Stage  # DVC's, and that of its records
    settings: Path  # the file whose block `search` it is
    reports: Path

    def params(self) -> Params:
        """The settings of `params.yaml`, with this search's block.

        Raises:
            MaskDMError: a file is missing, or a setting is not usable.
        """
        search = load_block(SearchSettings, "search", self.settings)
        return load_params(ROOT / "params.yaml").model_copy(update={"search": search})


SMALL = Place("search", ROOT / "params.yaml", SEARCH_REPORTS)
LARGE = Place("large_search", STUDY, STUDY_REPORTS / "search")


@dataclass(frozen=True)
class Search:
    """The opened project and the study in it."""

    place: Place
    project: Project  # its settings measure the held-out loss `SEARCH_POINTS` times
    identity: str  # of the study: more trials, or other seeds to confirm with, are the same one

    @classmethod
    def open(cls, place: Place) -> "Search":
        """Read the settings and check that they can be searched.

        Raises:
            MaskDMError: a setting or the data is not usable.
        """
        params = place.params()
        heldout = params.heldout.model_copy(update={"points": SEARCH_POINTS})
        params = params.model_copy(update={"heldout": heldout})
        project = replace(Project.open(ALONE), params=params)
        check(project)
        settings = params.model_dump(include={"model", "heldout"}, exclude_defaults=True)
        settings |= params.search.model_dump(
            include={"seed", "train_flops", "space", "finetune", "parallel"}, exclude_defaults=True
        )
        return cls(place, project, identity(project, place.stage, DRAWING, settings, project.recipe.flat()))

    @property
    def folder(self) -> Path:
        """Where the study is, without a server. It stays, so that more trials go on from it."""
        return ROOT / "work" / "search" / self.identity

    @property
    def name(self) -> str:
        """Of the study in its database."""
        return f"maskdm-{self.identity}"

    def study(self) -> "Study":
        """The study, whose trials the workers share."""
        return open_study(open_storage(storage_url(), self.folder), self.name, self.project.params.search.trials)

    def trial(self, phases: tuple[Phase, ...]) -> Project:
        """The project with the settings of a trial of the search: these phases, then fine-tuning."""
        settings = self.project.params.search
        params = comparison(self.project.params, {"trial": (*phases, settings.finetune)}, (settings.seed,), "trial")
        return replace(self.project, params=params)

    def confirmation(self, study: "Study") -> Params:
        """The comparison that a search ends in: its best, the paper's default and scratch, with seeds it never saw."""
        params, settings = self.project.params, self.project.params.search
        best = {
            f"trial{trial.number}": phases_of(trial, settings.space, params.grid)
            for trial in best_trials(study, settings.confirm)
        }
        return self.confirmation_of(best)

    def confirmation_of(self, best: dict[str, tuple[Phase, ...]]) -> Params:
        """The same of trials whose phases are known."""
        params, settings = self.project.params, self.project.params.search
        others = {"paper": paper_phases(settings.space, params.grid, settings.finetune), SCRATCH: ()}
        arms = {name: (*phases, settings.finetune) for name, phases in (best | others).items()}
        return comparison(params, arms, settings.confirm_seeds, SCRATCH)

    def confirmations(self, study: "Study") -> dict[str, Project]:
        """The trials of the confirmation, by the key of their record."""
        params = self.confirmation(study)
        return {
            f"confirm/{arm}-seed{seed}": replace(self.project, params=params.trial(arm, seed))
            for arm in params.arms
            for seed in params.seeds
        }


def comparison(params: Params, arms: dict[str, tuple[Phase, ...]], seeds: tuple[int, ...], baseline: str) -> Params:
    """The settings `params` with another comparison, of the search's compute and judged at its end."""
    budget = Budget(train_flops=params.search.train_flops, snapshots=(1.0,))
    own = {"seeds": seeds, "budget": budget, "arms": arms, "baseline": baseline, "controls": {}}
    return params.model_copy(update=own)


def storage_url() -> str | None:
    """The database that several machines share; None: there is none."""
    return os.environ.get(VARIABLE) or None


def show_dashboard(place: Place, port: int) -> None:
    """Serve Optuna's dashboard of a search until Ctrl-C.

    Raises:
        MaskDMError: the search has not begun, its database does not answer, or the port is taken.
    """
    found, url = Search.open(place), storage_url()
    if url is None and not study_file(found.folder).is_file():
        raise MaskDMError(f"{study_file(found.folder)}: no such file; {NO_STUDY}")
    with one_line_failures(url, found.folder):
        serve_dashboard(open_storage(url, found.folder), found.name, port)


def check(project: Project) -> None:
    """Refuse settings with which no search is fair.

    Raises:
        MaskDMError: no mask fits, the network cannot see what one leaves, a confirming seed is the search's own, or
            whole steps cannot meet the compute.
    """
    params, settings = project.params, project.params.search
    if not feasible_masks(settings.space, params.grid):
        raise MaskDMError(f"search.space: none of its masks fits the {params.grid[0]}x{params.grid[1]} token grid")
    for mask in proposed_masks(settings.space, params.grid):
        try:
            params.model.check_mask(mask)
        except ValueError as error:
            raise MaskDMError(f"search.space (max_phases={settings.space.max_phases}): {error}") from None
    if settings.seed in settings.confirm_seeds:
        raise MaskDMError(f"search.confirm_seeds: {settings.seed} is the search's own seed; allowed: others")
    step = dense_step_flops(params, project)
    if step / 2 > BUDGET_TOLERANCE / 2 * settings.train_flops:
        raise MaskDMError(
            f"search.train_flops={settings.train_flops:.3g}: a step of fine-tuning is {step:.3g}, too long to meet it "
            f"to {BUDGET_TOLERANCE / 2:.2%}; allowed: from {step / BUDGET_TOLERANCE:.3g}, or a smaller "
            "search.finetune.batch_size"
        )


def dense_step_flops(params: Params, project: Project) -> float:
    """Compute of one step of the trials' fine-tuning."""
    settings = params.search
    # A budget that whole steps surely meet: only the step is looked at.
    plenty = settings.model_copy(update={"train_flops": 1e6 * settings.train_flops})
    scratch = comparison(params.model_copy(update={"search": plenty}), {SCRATCH: (settings.finetune,)}, (0,), SCRATCH)
    return plan_finetune(scratch, project.recipe, SCRATCH).step_flops


# --- workers ------------------------------------------------------------------------------------------------


def run_workers(found: Search, workers: int, joined: bool) -> None:
    """Start the processes and wait until all work is done; as soon as one fails, end the others.

    Raises:
        MaskDMError: a worker was killed, so that it could not say why.
    """
    # By how many workers there may be, not by how many there are: threads decide how numbers are rounded.
    threads, gpus = max(1, count_cores() // found.project.params.search.parallel), visible_gpus()
    load_libraries()
    context = get_context("forkserver")
    processes = [
        context.Process(
            name=f"worker {index}",
            target=work,
            args=(found.place, index, workers, threads, gpus[index % len(gpus)] if gpus else None, joined),
        )
        for index in range(workers)
    ]
    failed: BaseProcess | None = None
    try:
        for process in processes:
            process.start()
        failed = wait_for(found, list(processes))
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            process.join()
    if failed is None:
        return
    if failed.exitcode and failed.exitcode < 0:
        name = signal.Signals(-failed.exitcode).name
        raise MaskDMError(f"{failed.name} was ended by {name}; the same command goes on from here")
    raise SystemExit(failed.exitcode)  # it has said why


def wait_for(found: Search, processes: list[BaseProcess]) -> BaseProcess | None:
    """Show how far the search is until all processes have ended well, or one has not: that one is returned."""
    settings, study = found.project.params.search, found.study()
    done = len(finished_trials(study))
    with tqdm(desc="search", total=settings.trials, initial=done, unit="trial", mininterval=bar_interval()) as bar:
        while running := [process for process in processes if process.exitcode is None]:
            connection.wait([process.sentinel for process in running], POLL_SECONDS)
            bar.update(len(finished_trials(study)) - bar.n)
            if failed := next((process for process in processes if process.exitcode), None):
                return failed
    return next((process for process in processes if process.exitcode), None)


def work(place: Place, index: int, workers: int, threads: int, gpu: str | None, joined: bool) -> None:
    """A worker: trials until there are enough, then its share of the runs that confirm."""
    settle(gpu, threads)
    with exit_with_one_line():
        found = Search.open(place)
        params = found.project.params
        with one_line_failures(storage_url(), found.folder):
            study = found.study()
            claims = claim_lock(storage_url(), found.folder)
            run_trials(study, params.search, params.grid, params.search.seed, partial(train_trial, found), claims)
            if joined:
                return
            done = first_trials(study, params.search.trials)
            if not best_trials(done, 1):  # the main process says so, once
                return
            for key, project in list(found.confirmations(done).items())[index::workers]:
                if recorded(found.place.stage, project, key, judged=True) is None:
                    run_trial(project, found.place.stage, key, judged=True)


def train_trial(found: Search, attempt: Attempt) -> float:
    """Train a trial, or go on with one, and return its held-out loss."""
    total = found.project.params.search.train_flops
    project = found.trial(attempt.phases)
    key = f"trials/{attempt.number:04d}"
    told: set[float] = set()

    def watch(row: Row) -> None:
        # Phases end between points, arms about at 1.
        share = int(SEARCH_POINTS * row["train_flops"] / total + 0.05) / SEARCH_POINTS
        if share and share not in told:
            told.add(share)
            attempt.report(share, row["heldout_loss"])

    known = recorded(
        found.place.stage, project, key, judged=False
    )  # of a worker that was killed before it told the study, say
    if known:
        for row in known.history:
            watch(row)
        return float(known.summary["heldout_loss"])
    extra = {f"search.{name}": value for name, value in attempt.trial.params.items()}
    return float(run_trial(project, found.place.stage, key, False, watch, extra).record.summary["heldout_loss"])


# --- results ------------------------------------------------------------------------------------------------


def write_results(found: Search) -> None:
    """The tables, the best configuration, and the records of this study alone.

    Raises:
        MaskDMError: no trial came to its end.
    """
    params = found.project.params
    study, space = first_trials(found.study(), params.search.trials), params.search.space
    if not (best := best_trials(study, 1)):
        raise MaskDMError(
            f"search: each of the {params.search.trials} trials diverged; allowed: a smaller search.space.lr (now "
            f"{space.lr[0]:g} to {space.lr[1]:g})"
        )
    trials = trials_frame(study, space, params.grid)
    for name, frame in (
        ("trials", trials),
        ("curves", curves_frame(study)),
        ("importance", importance_frame(study)),
    ):
        write_csv(found.place.reports / f"{name}.csv", frame)
    write_best(found.place.reports / "best.yaml", params, phases_of(best[0], space, params.grid))
    complete = trials.loc[trials["state"] == "complete", "trial"]  # a pruned one has no record; an earlier study's may
    keys = {f"trials/{number:04d}" for number in complete} | set(found.confirmations(study))
    for folder in ("trials", "confirm"):
        fold_records(ROOT, found.place.stage, folder, keep=keys)
    mlflow_store.summarise(ROOT, found.place.stage)


def write_best(path: Path, params: Params, phases: tuple[Phase, ...]) -> None:
    """The best arm in the form of `params.yaml`."""
    arm = [phase.model_dump(exclude_defaults=True) for phase in (*phases, params.search.finetune)]
    write_atomically(path, lambda file: YAML(typ="safe").dump({"arms": {BEST: arm}}, file))
