"""One row of every published table, trained again. The day decides which, so that in time every row has its turn.

A row of a comparison is trained with a new seed. A trial of a tuning or of a search is trained as it was, and must come
to the same. What was trained on a day stays in `runs/verify/<day>/`: the same day's check goes on where it was stopped.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from maskdm.config.comparison import Phase
from maskdm.config.study import DEFAULT, Part, Study, load_study
from maskdm.config.tuning import Tuned
from maskdm.engine import searching, tuning
from maskdm.engine.dry_run import measure_rate
from maskdm.engine.judge import judging_flops
from maskdm.engine.project import Project
from maskdm.engine.reproducing import PublishedRow, require_today
from maskdm.engine.trial import run_trial, trial_identity
from maskdm.engine.workers import run_all
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import ROOT, STUDY, places_of
from maskdm.runtime.progress import Work, WorkBar
from maskdm.search import phases_of
from maskdm.tracking.records import (
    Record,
    Stage,
    hardware,
    read_record,
    read_record_at,
    read_records,
    write_record_at,
)
from maskdm.training.plan import arm_plans

STAGES: tuple[Stage, ...] = ("default", "study", "tuning", "search", "large_search")
SEARCHES = {place.stage: place for place in (searching.SMALL, searching.LARGE)}
THREADS = 1  # as tunings have: threads decide how numbers are rounded
KIND = ("device", "cpu", "processes", "torch", "precision")  # machines that agree in these give the same digits


@dataclass(frozen=True)
class Check:
    """A row of a published table, to be trained again on a day."""

    day: date
    stage: Stage
    row: str  # of a comparison `<comparison>/<arm>`, else the key of the record
    seed: int | None = None  # a new one; None: the recorded trial itself is trained again

    @property
    def table(self) -> str:
        """What is published: `default`, a part of the study, `tuning/<name>`, `search/trials` or `search/confirm`."""
        folder = self.row.partition("/")[0]
        return folder if self.seed is not None else f"{self.stage}/{folder}"


@dataclass(frozen=True)
class Opened:
    """What a check trains, and what is published."""

    trial: Project
    judged: bool
    published: tuple[Record, ...]  # the row's seeds, or the trial alone
    is_same_kind: bool  # whether this machine should give a recorded trial's digits

    @property
    def identity(self) -> str:
        """Of the trial: rows of two tables may be one trial."""
        return trial_identity(self.trial, self.judged)


@dataclass(frozen=True)
class Repeated:
    """A check that was trained, or why it could not be."""

    check: Check
    published: tuple[Record, ...] = ()
    record: Record | None = None
    is_same_kind: bool = False
    obstacle: str | None = None


@dataclass(frozen=True)
class Job:
    """What a check takes."""

    check: Check
    identity: str = ""  # of the trial; empty: it cannot be trained
    flops: float = 0.0  # of training
    size: float = 0.0  # with judging, as `judging_flops` counts
    is_done: bool = True


@dataclass(frozen=True)
class Cost:
    """What is left to train of some jobs."""

    trainings: int
    flops: float
    seconds: float  # about, here, with judging
    workers: int  # at a time


def due(day: date, attempt: int = 0) -> list[Check]:
    """A row of every table that has records and can be trained here. A day later the list begins with the next table.

    Args:
        day: decides which rows.
        attempt: of the rows of comparisons; every one has another seed.

    Raises:
        MaskDMError: nothing is recorded, or a file of records or settings is damaged.
    """
    seed = int(f"{day:%Y%m%d}{attempt}")
    tables: dict[str, dict[Check, None]] = {}
    for stage, row in _published():
        check = Check(day, stage, row, seed if stage in {"default", "study"} else None)
        tables.setdefault(check.table, {})[check] = None
    if not tables:
        raise MaskDMError("records: no table has records; `dvc repro` makes those of params.yaml")
    turn = day.toordinal()
    found = [list(rows)[turn % len(rows)] for rows in tables.values()]
    return found[turn % len(found) :] + found[: turn % len(found)]


def job_of(check: Check) -> Job:
    """What a check takes."""
    try:
        found = opened(check)
        is_done = _known(check.day, found) is not None
    except MaskDMError:  # `repeat` says what
        return Job(check)
    params = found.trial.params
    flops = params.budget.train_flops
    return Job(
        check,
        found.identity,
        flops,
        flops + (judging_flops(params, found.trial.recipe) if found.judged else 0.0),
        is_done,
    )


def of_tables(checks: list[Check], names: Collection[str]) -> list[Check]:
    """Those of some tables; of all, if none is named.

    Raises:
        MaskDMError: nothing is due of one of them.
    """
    known = [check.table for check in checks]
    for name in names:
        if name not in known:
            raise MaskDMError(f"table {name}; allowed: {', '.join(known)}")
    return [check for check in checks if not names or check.table in names]


def within(jobs: list[Job], budget: float | None) -> list[Job]:
    """Of some jobs the first that fit into a budget in FLOPs of training; one that does not fit is passed over.

    Equal trials cost what one of them costs, and what cannot be trained nothing.

    Raises:
        MaskDMError: no training fits.
    """
    if budget is None:
        return jobs
    smallest = min((job.flops for job in jobs if job.identity), default=0.0)
    if budget < smallest:
        raise MaskDMError(f"--budget={budget:g}; allowed: from {smallest:g}, the FLOPs of the smallest training")
    left, found = budget, list[Job]()
    for equal in one_a_trial(jobs):
        if equal[0].flops <= left:
            found += equal
            left -= equal[0].flops
    return found


def cost(jobs: list[Job], workers: int) -> Cost:
    """What some jobs take here, by a burst of steps of the first. What is done or cannot be done costs nothing."""
    left = [first for first, *_ in one_a_trial(jobs) if not first.is_done]
    if not left:
        return Cost(0, 0.0, 0.0, workers)
    trial, workers = opened(left[0].check).trial, min(workers, len(left))
    plan = arm_plans(trial.params, trial.recipe, trial.params.arm)[-1]
    rate = workers * measure_rate(trial.params, trial.recipe, plan, trial.device)
    return Cost(len(left), sum(job.flops for job in left), sum(job.size for job in left) / rate, workers)


def one_a_trial(jobs: list[Job]) -> list[list[Job]]:
    """The jobs, those of equal trials together: the first of them trains, and the others find it done."""
    found = dict[str, list[Job]]()
    for job in jobs:
        found.setdefault(job.identity or str(job.check), []).append(job)
    return list(found.values())


def repeat_all(jobs: list[Job], workers: int) -> Iterator[Repeated]:
    """Train all that is not done, so many at a time, with one bar."""
    tasks = one_a_trial(jobs)
    bar = WorkBar(f"{len(jobs)} rows again", Work([first.size for first, *_ in tasks]))
    for found in run_all(_repeat_each, tasks, workers, unit="row", bar=bar, threads=THREADS):
        yield from found


def _repeat_each(jobs: list[Job]) -> list[Repeated]:
    return [repeat(job.check) for job in jobs]


def repeat(check: Check) -> Repeated:
    """Train a check, unless that is done; it goes on where it was stopped."""
    try:
        found = opened(check)
        record = _known(check.day, found)
        if record is None:
            path = _path(check.day, found)
            end = "" if check.seed is None else f"-{check.seed}"
            record = run_trial(
                found.trial,
                "train",
                f"verify-{check.day}/{check.table}/{check.row.rpartition('/')[2]}{end}",
                found.judged,
                keep=lambda result, _: write_record_at(path, result.record),
            ).record
    except MaskDMError as error:
        return Repeated(check, obstacle=str(error))
    return Repeated(check, found.published, record, found.is_same_kind)


def opened(check: Check) -> Opened:
    """Open the trial of a check.

    Raises:
        MaskDMError: what is recorded is not of today's settings and data, or a file is missing or damaged.
    """
    if check.seed is not None:
        row = PublishedRow.open(check.row)
        return Opened(row.project.trial(check.row.rpartition("/")[2], check.seed), True, row.records, False)
    found = read_record(ROOT, check.stage, check.row)
    assert found is not None, "what is due is recorded"
    record, machine = found
    trial = _tuned(record) if check.stage == "tuning" else _searched(record)
    judged = check.row.startswith("confirm/")
    name = check.row.partition("/")[0]
    command = f"python -m pipeline.tune {name}" if check.stage == "tuning" else f"dvc repro {check.stage}"
    require_today(record, machine, trial, judged, command)
    here = hardware(trial.device, trial.processes.count)
    is_same = machine is not None and all(machine.hardware.get(key) == here[key] for key in KIND)
    return Opened(trial, judged, (record,), is_same)


def left_out() -> list[str]:
    """Tables of data sets that are not prepared here, so that no row of them is due."""
    rows = ((stage, row.partition("/")[0]) for stage, row, data_set in _recorded() if not _is_prepared(data_set))
    return sorted({folder if stage == "study" else f"{stage}/{folder}" for stage, folder in rows})


def _published() -> list[tuple[Stage, str]]:
    """Stage and row of every record of a table whose settings and data are here."""
    return [(stage, row) for stage, row, data_set in _recorded() if _is_prepared(data_set)]


def _recorded() -> Iterator[tuple[Stage, str, str | None]]:
    """Stage, row and data set of every record of a table whose settings are here."""
    records = [record for record, _ in read_records(ROOT, STAGES)]
    needs_study = any(record.stage in ("study", "tuning") for record in records)
    study = load_study(STUDY) if needs_study else Study(parts={})
    asked: dict[str, Mapping[str, Part | Tuned]] = {"study": study.all_parts, "tuning": study.all_tunings}
    for record in records:
        folder = record.key.partition("/")[0]
        if record.stage not in asked:
            yield record.stage, f"{DEFAULT}/{record.arm}" if record.stage == "default" else record.key, None
        elif folder in (own := asked[record.stage]):
            row = f"{folder}/{record.arm}" if record.stage == "study" else record.key
            yield record.stage, row, own[folder].set


def _is_prepared(data_set: str | None) -> bool:
    return data_set is None or places_of(data_set).prepared.is_dir()


def _tuned(record: Record) -> Project:
    """The trial of a tuning, from what was chosen for it."""
    name, _, place = record.key.partition("/")
    study = load_study(STUDY)
    if record.arm not in study.all_tunings[name].arms:
        raise MaskDMError(f"records/tuning: {record.key}: tunings.{name} has no arm {record.arm}")
    chosen = _drawn(record, "tuning.")
    return tuning.Task(study, name, record.arm, int(place.rpartition("-")[2]), chosen).project()


def _searched(record: Record) -> Project:
    """A trial of a search, or a run that confirms one, from what was drawn for the trials."""
    found = searching.Search.open(SEARCHES[record.stage])
    params = found.project.params

    def phases(trial: Record) -> tuple[Phase, ...]:
        try:
            drawn: Any = SimpleNamespace(params=_drawn(trial, "search."))  # all that is asked of a trial of Optuna's
            return phases_of(drawn, params.search.space, params.grid)
        except ValueError:
            raise MaskDMError(f"records/{trial.stage}: {trial.key} is of another space than today's") from None

    if record.key.startswith("trials/"):
        return found.trial(phases(record))
    number = record.arm.removeprefix("trial")
    trial = read_record(ROOT, record.stage, f"trials/{number:>04}")
    own = found.confirmation_of({record.arm: phases(trial[0])} if trial else {})
    if record.arm not in own.arms:
        raise MaskDMError(f"records/{record.stage}: {record.key}: there is no record of its trial")
    return replace(found.project, params=own.trial(record.arm, int(record.params["seed"])))


def _drawn(record: Record, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in record.params.items() if name.startswith(prefix)}


def _path(day: date, found: Opened) -> Path:
    """Of the record of what is trained on a day."""
    return ROOT / "runs" / "verify" / day.isoformat() / f"{found.identity}.json"


def _known(day: date, found: Opened) -> Record | None:
    """What was trained on a day."""
    path = _path(day, found)
    return read_record_at(path) if path.is_file() else None
