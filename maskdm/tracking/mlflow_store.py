"""MLflow: one experiment, a run per arm with its means, below it one per trial.

The store is a view of the record files. No failure of it stops a training, and `sync` rebuilds it from the records.
"""

import json
import logging
import os
import re
import sqlite3
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from tqdm import tqdm

from maskdm.runtime.errors import MaskDMError, StoppedEarly
from maskdm.runtime.files import expanded, file_sha256, sqlite_path, sqlite_url
from maskdm.runtime.paths import INDEX
from maskdm.runtime.urls import bypass_proxies_on_this_machine, without_passwords
from maskdm.tracking.mlflow_models import Model, has_model, log_model
from maskdm.tracking.records import Machine, Record, Stage, dvc_state, git_state, read_records
from maskdm.tracking.subject import Subject, digest
from maskdm.tracking.views import EXPERIMENT_TAGS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run, RunInfo
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

EXPERIMENT = "maskdm"
PARENT = "mlflow.parentRunId"
VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
ENVIRONMENT = {  # what the user has set goes before
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the defaults try for minutes; training does not wait for a server
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # `mlflow ui`: no background workers, which nothing here uses
}
DATABASE_ATTEMPTS = 2  # as above; MLflow has no variable for it, and tries for 100 seconds
LOCK_SECONDS = 120
REST_SECONDS = 60.0  # after a failure
REST_FACTOR = 20  # or so many times as long as the failure took: a server that is silent costs 5 % of the time

# In a row, these say where and how it was measured; every other number is a metric.
NOT_METRICS = {
    *("step", "phase", "fraction"),
    *("samples", "reference", "num_inference_steps", "eta", "guidance_scale", "input_size"),
}
QUALITY = re.compile(r"heldout_loss|fid|fd_.*|kid")  # also logged against compute, to compare arms in the UI
# The run of an arm has means of these.
OF_AN_ARM = re.compile(rf"{QUALITY.pattern}|precision|recall|density|coverage|nearest|images_seen|train_flops")
SYNCED = "maskdm.synced"  # tag: digest of the record that a run holds all of
SUMMARY = "maskdm.summary"  # tag: digest of what the run of an arm holds; set last
# --- what stage scripts use ---------------------------------------------------------------------------------


@contextmanager
def live_run(root: Path, record: Record) -> Iterator["LiveRun"]:
    """The MLflow run of a stage while it computes. A run that the store has of this identity is taken up again.

    It ends as FINISHED, on an exception FAILED, on Ctrl-C KILLED. One that is stopped early is FINISHED, with a tag
    `maskdm.stopped_early` that says why. Tracking itself raises nothing.

    Args:
        root: the project; its `mlflow.db` is the store unless `MLFLOW_TRACKING_URI` names another.
        record: what the run is about; nothing is measured yet, so without history and summary.
    """
    run = LiveRun(root, Subject(record, git_state(root), dvc_state(root)))
    try:
        yield run
    except KeyboardInterrupt:
        run.close("KILLED")
        raise
    except StoppedEarly as stopped:
        run.tag("maskdm.stopped_early", str(stopped))
        run.close("FINISHED")
        raise
    except BaseException:
        run.close("FAILED")
        raise
    run.close("FINISHED")


class LiveRun:
    """Logs as long as the store answers. When it fails that is said, once, and logging rests for a while.

    A store that is back gets what it lacks. It may hold any part of what failed, so the run is then read anew.
    """

    _run: "StoredRun | None" = None
    _monitor: "SystemMetricsMonitor | None" = None
    _rests_until = 0.0
    _failed = False
    _closing = False

    def __init__(self, root: Path, subject: Subject) -> None:
        self._root, self._subject = root, subject
        self._attempt(lambda run: None)

    def log_history(self, rows: list[dict[str, Any]]) -> None:
        """Log what the store lacks of `rows`, the complete history so far."""

        def log(run: StoredRun) -> None:
            run.add_history(rows, [_now()] * len(rows))
            run.write()

        self._attempt(log)

    def log_machine(self, machine: Machine) -> None:
        """Log time, throughput, memory and hardware of the finished stage."""

        def log(run: StoredRun) -> None:
            run.add_machine(machine, _now())
            run.write()

        self._attempt(log)

    def log_artifact(self, path: Path) -> None:
        """Attach a file: a sample grid, the record."""
        self._attempt(lambda run: run.log_artifact(path))

    def log_model(self, model: Model) -> None:
        """Add the trained weights, with the metrics so far."""
        self._attempt(lambda run: run.log_model(self._subject, model))

    def tag(self, name: str, value: str) -> None:
        """Set a tag."""
        self._attempt(lambda run: run.write({name: value}))

    def close(self, status: str) -> None:
        """End the run; `live_run` calls it."""
        self._closing = True  # a run that is opened only now is not watched
        if self._monitor:
            self._monitor.finish()  # it keeps its own failures to itself
        self._attempt(lambda run: run.close(status, _now()))
        self._attempt(lambda run: run.close_parent(status, _now()))

    def _open(self) -> "StoredRun":
        run = Store(self._root).run(self._subject, _now())
        run.write()
        run.reopen()
        if self._monitor is None and not self._closing:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(run.run_id, resume_logging=True, tracking_uri=store_uri(self._root))
            self._monitor.start()
        return run

    def _attempt(self, action: Callable[["StoredRun"], None]) -> None:
        began = time.monotonic()
        if began < self._rests_until:
            return
        try:
            self._run = self._run or self._open()
            action(self._run)
        except Exception as error:  # whatever it is, it must not stop a training
            self._run = None
            ended = time.monotonic()
            self._rests_until = ended + max(REST_SECONDS, REST_FACTOR * (ended - began))
            if not self._failed:
                _warn(self._root, error)
            self._failed = True
        else:
            self._failed = False


def summarise(root: Path, stage: Stage) -> None:
    """Bring the runs of the arms of a stage up to the means of its records; it raises nothing."""
    try:
        store = Store(root)
        for trials in _arms(read_records(root, (stage,))):
            store.summarise(trials)
    except Exception as error:
        _warn(root, error)


def log_report(root: Path, paths: Iterable[Path]) -> None:
    """Attach a page and its figures to the run `report`, in place of older ones; it raises nothing."""
    try:
        Store(root).log_report(paths)
    except Exception as error:
        _warn(root, error)


def _warn(root: Path, error: Exception) -> None:
    tqdm.write(
        f"warning: tracking failed ({_reason(root, error)}); training goes on, the records are kept "
        "and `maskdm sync` uploads what is missing",
        file=sys.stderr,
    )


def sync(root: Path, model_of: Callable[[Record], Model | None] = lambda _: None) -> int:
    """Bring the store up to the committed records: after a clone, a DVC cache hit, or without a server in training.

    Args:
        root: the project.
        model_of: the weights of a trial, where they are here.

    Returns:
        How many runs were added or completed.

    Raises:
        MaskDMError: a record is corrupt, or the store cannot be reached.
    """
    pairs = [pair for pair in read_records(root) if pair[0].history]  # a stage without a step was no run
    try:
        store = Store(root)
        known = store.known_runs()
        new = [pair for pair in pairs if not _is_whole(known.get(Subject.of(*pair).run_id), *pair, model_of)]
        changed = sum(_sync_run(store, *pair, known, model_of) for pair in tqdm(new, desc="sync", unit="run"))
        for trials in _arms(pairs):
            store.summarise(trials)
        if (root / INDEX).is_file():
            store.log_report([root / INDEX])
        return changed
    except Exception as error:
        raise MaskDMError(f"tracking store {_reason(root, error)}") from error


def _is_whole(
    run: "Run | None", record: Record, machine: Machine | None, model_of: Callable[[Record], Model | None]
) -> bool:
    """Whether a run that the store has holds all of a record, and the model, if there is one."""
    if run is None or run.info.status != "FINISHED" or run.data.tags.get(SYNCED) != _pair_digest(record, machine):
        return False
    return has_model(run) or model_of(record) is None


def _sync_run(
    store: "Store",
    record: Record,
    machine: Machine | None,
    known: Collection[str],
    model_of: Callable[[Record], Model | None],
) -> bool:
    """Whether something was missing."""
    started, *times = _timestamps(record, machine)
    ended = max(times, default=started)
    subject = Subject.of(record, machine)
    run = store.run(subject, started, is_new=subject.run_id not in known)
    run.add_history(record.history, times)
    if machine:
        run.add_machine(machine, ended)
    model = None if run.has_model else model_of(record)
    changed = run.lacks_something or model is not None
    run.write()
    if model:
        run.log_model(subject, model)
    run.write({SYNCED: _pair_digest(record, machine)})
    if changed:
        run.log_json(f"{record.key.replace('/', '-')}.json", asdict(record))
        store.log_grid(run, record)
        run.close("FINISHED", ended)
    return changed


def _arms(pairs: Iterable[tuple[Record, Machine | None]]) -> Iterator[list[tuple[Record, Machine | None]]]:
    """The trials that are below one run each."""

    def below(pair: tuple[Record, Machine | None]) -> str:
        return Subject.of(*pair).parent["maskdm.run_id"]

    for _, trials in groupby(sorted((pair for pair in pairs if pair[0].history), key=below), key=below):
        yield list(trials)


def _timestamps(record: Record, machine: Machine | None) -> list[int]:
    """When the stage began and, about, when each row was measured; now, if nobody knows."""
    if machine is None:
        return [_now()] * (1 + len(record.history))
    began = datetime.fromisoformat(machine.started_at).timestamp()
    return [int(1000 * began), *(int(1000 * (began + elapsed)) for elapsed in machine.seconds)]


def ui_page(port: int) -> str:
    """Where the table of arms is, once `ui_command` runs."""
    return f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=arms"


def ui_command(root: Path, port: int) -> list[str]:
    """The command that shows the project's own store on this machine alone; run it with `ENVIRONMENT` set."""
    store = sqlite_url(root / "mlflow.db")
    where = ["--host", "127.0.0.1", "--port", f"{port}", "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, *where]


# --- the store ----------------------------------------------------------------------------------------------


def store_uri(root: Path) -> str:
    """The MLflow store in use; `~` and variables in the user's are replaced.

    Raises:
        MaskDMError: it names a variable that is not set.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if not given:
        return sqlite_url(root / "mlflow.db")
    if given.startswith(SQLITE):
        return SQLITE + str(expanded(given.removeprefix(SQLITE), VARIABLE))
    return str(expanded(given, VARIABLE)) if given.startswith(("~", "$")) else given


class Store:
    """The experiment in the MLflow store, created at first use. Every method raises what MLflow raises."""

    def __init__(self, root: Path) -> None:
        os.environ.update(ENVIRONMENT | os.environ)
        bypass_proxies_on_this_machine()
        from mlflow import MlflowClient
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = DATABASE_ATTEMPTS
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # failures are reported here, in one line

        self._root = root
        uri, artifacts = store_uri(root), (root.resolve() / "mlartifacts").as_uri()
        # One process at a time creates things: two that create the tables, or an arm's run, trip over each other.
        self._lock = FileLock(root / "mlflow.db.lock", timeout=LOCK_SECONDS)
        local = uri.startswith("sqlite")
        if local:
            with self._lock:
                _create_database(sqlite_path(uri), artifacts)
        self._client = MlflowClient(uri)
        self._parent_ids: dict[str, str] = {}  # known runs above others, by what tells them apart
        with self._lock:
            # Pinned, because MLflow's own choice depends on the working directory. A server has a place of its own.
            self._experiment_id = self._experiment(artifacts if local else None)

    def run(self, subject: Subject, started: int, is_new: bool = False) -> "StoredRun":
        """The run of `subject`, found by its identity or created below its parent, with what is known to be written.

        Args:
            subject: what it is about.
            started: in milliseconds.
            is_new: the store is known to have no such run.
        """
        with self._lock:
            known = self._parent_ids.get(subject.parent["maskdm.run_id"])
            parent_id = known or self._parent(subject, started).info.run_id
            run = None if is_new else self._find(subject.run_id)
            if run is None:
                tags = {"maskdm.role": "trial", "maskdm.key": subject.record.key, PARENT: parent_id}
                tags |= {"maskdm.run_id": subject.run_id}
                run = self._client.create_run(self._experiment_id, started, _tags(subject) | tags, subject.name)
            elif run.data.tags.get(PARENT) != parent_id:
                self._client.set_tag(run.info.run_id, PARENT, parent_id)
            stored = StoredRun(self._client, run)
            stored.add_params(subject.params)
            stored.log_data_set(subject)
            return stored

    def known_runs(self) -> "dict[str, Run]":
        """The runs by what tells them apart."""
        return {run.data.tags["maskdm.run_id"]: run for run in self._search("tags.`maskdm.run_id` LIKE '%'")}

    def log_grid(self, run: "StoredRun", record: Record) -> None:
        """Attach the samples of a trial of `params.yaml`, if they are here."""
        grid = self._root / "runs" / "evaluate" / record.key / "grid.png"
        if record.stage == "default" and grid.is_file():
            run.log_artifact(grid)

    def summarise(self, trials: list[tuple[Record, Machine | None]]) -> None:
        """Bring the run above some trials up to their means; above those of a search, to the best of them."""
        first = Subject.of(*trials[0])
        records = [record for record, _ in trials]
        counted = {"trials" if first.is_attempt else "seeds": float(len(records))}
        if first.is_attempt:
            records = [min(records, key=lambda record: float(record.summary["heldout_loss"]))]
        points = _means(records) | {(name, 0): value for name, value in counted.items()}
        content = digest(sorted([*key, value] for key, value in points.items()))
        times = [time for pair in trials for time in _timestamps(*pair)]
        with self._lock:
            parent = self._parent(first, min(times))
            if parent.data.tags.get(SUMMARY) == content:
                return
            if parent.data.metrics:  # MLflow cannot change what is logged
                parent = self._replace(parent, first)
            stored = StoredRun(self._client, parent)
            stored.add_params(Subject.of(records[0], None).params if first.is_attempt else first.shared_params)
            stored.add_points((*key, value, max(times)) for key, value in points.items())
            self.log_grid(stored, records[0])
            stored.write()
            stored.write({SUMMARY: content})  # last: a part of it, left by a kill, is replaced
            stored.close("FINISHED", max(times))

    def log_report(self, paths: Iterable[Path]) -> None:
        """Attach files to the run `report`, those that it lacks; it stands beside the arms of `params.yaml`."""
        contents = {path: file_sha256(path) for path in paths}
        with self._lock:
            tags = {"maskdm.run_id": "report", "mlflow.source.name": "dvc.yaml:report", "mlflow.source.type": "LOCAL"}
            tags |= {"maskdm.comparison": "default", "maskdm.role": "report"}
            run = self._find("report") or self._client.create_run(self._experiment_id, _now(), tags, "report")
        for path, content in contents.items():
            tag = f"maskdm.sha256.{path.name}"
            if run.data.tags.get(tag) != content:
                self._client.log_artifact(run.info.run_id, str(path))
                self._client.set_tag(run.info.run_id, tag, content)
        self._client.set_terminated(run.info.run_id)

    def _parent(self, subject: Subject, started: int) -> "Run":
        """The run above that of `subject`, made at first use with all that is known before anything is measured."""
        name = subject.parent["maskdm.run_id"]
        run = self._merged(name)
        if run is None:
            self._new_parent(subject, started)
            run = self._merged(name)
        assert run is not None
        self._parent_ids[name] = run.info.run_id
        return run

    def _merged(self, run_id: str) -> "Run | None":
        """The run of this identity. Of several, which machines made at the same moment, the first stays."""
        found = sorted(self._search(f"tags.`maskdm.run_id` = '{run_id}'"), key=lambda run: _age(run.info))
        for double in found[1:]:
            self._move_children(double.info.run_id, found[0].info.run_id)
            self._client.delete_run(double.info.run_id)
        return self._client.get_run(found[0].info.run_id) if found else None

    def _new_parent(self, subject: Subject, started: int) -> "Run":
        tags = _tags(subject) | subject.parent
        run = self._client.create_run(self._experiment_id, started, tags, subject.parent_name)
        stored = StoredRun(self._client, run)
        stored.add_params(subject.shared_params)
        stored.log_data_set(subject)
        stored.write()
        return self._client.get_run(run.info.run_id)

    def _replace(self, old: "Run", subject: Subject) -> "Run":
        """Another run in the place of one above some trials, which go below the new one."""
        self._client.delete_run(old.info.run_id)
        new = self._new_parent(subject, old.info.start_time)
        self._move_children(old.info.run_id, new.info.run_id)
        return new

    def _move_children(self, old: str, new: str) -> None:
        for child in list(self._search(f"tags.`{PARENT}` = '{old}'")):
            self._client.set_tag(child.info.run_id, PARENT, new)

    def _experiment(self, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            with suppress(MlflowException):  # another machine may be quicker
                self._client.create_experiment(EXPERIMENT, artifacts)
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            assert experiment is not None
        number = experiment.experiment_id
        if experiment.lifecycle_stage == "deleted":
            raise MaskDMError(
                f"the experiment {EXPERIMENT} is deleted; `mlflow experiments restore -x {number}` brings it back"
            )
        for name, value in EXPERIMENT_TAGS.items():
            if experiment.tags.get(name) != value:
                with suppress(MlflowException):  # as above; an absent server fails the next call
                    self._client.set_experiment_tag(number, name, value)
        return str(number)

    def _search(self, condition: str) -> "Iterator[Run]":
        page = self._client.search_runs([self._experiment_id], condition)
        yield from page
        while page.token:
            page = self._client.search_runs([self._experiment_id], condition, page_token=page.token)
            yield from page

    def _find(self, run_id: str) -> "Run | None":
        found = self._client.search_runs([self._experiment_id], f"tags.`maskdm.run_id` = '{run_id}'", max_results=1)
        return self._client.get_run(found[0].info.run_id) if found else None


class StoredRun:
    """One run and what the store holds of it, so that nothing is logged twice. Every method raises what MLflow raises.

    What is added is kept until `write`: a call of MLflow's takes 20 ms, however much it logs.
    """

    def __init__(self, client: "MlflowClient", run: "Run") -> None:
        self.run_id: str = run.info.run_id
        self._client = client
        self._run = run.info
        self._params = set(run.data.params)
        self._has_data = bool(run.inputs and run.inputs.dataset_inputs)
        self.has_model = has_model(run)
        self._logged = {
            (name, metric.step)
            for name in run.data.metrics
            if not name.startswith("system/")
            for metric in client.get_metric_history(self.run_id, name)
        }
        self._new_params: dict[str, Any] = {}
        self._new_points: dict[tuple[str, int], tuple[float, int]] = {}
        self._new_tags: dict[str, str] = {}

    @property
    def lacks_something(self) -> bool:
        """Whether the store has it unfinished, or less of it than has been added."""
        return bool(self._run.status != "FINISHED" or self._new_params or self._new_points)

    def add_params(self, params: Mapping[str, Any]) -> None:
        """Parameters; one once logged stays as it is."""
        self._new_params |= {name: value for name, value in params.items() if name not in self._params}

    def add_history(self, rows: list[dict[str, Any]], times: list[int]) -> None:
        """The metrics of `rows`, measured at `times` (milliseconds), against images seen and compute."""
        self.add_points((*point, time) for row, time in zip(rows, times, strict=True) for point in _points(row))

    def add_machine(self, machine: Machine, time: int) -> None:
        """Time, throughput and memory as metrics, hardware as tags."""
        figures = {
            "stage_seconds": machine.stage_seconds,
            "images_per_second": machine.images_per_second,
            "peak_memory_bytes": machine.peak_memory_bytes,
        }
        self.add_points((name, 0, float(value), time) for name, value in figures.items() if value is not None)
        self._new_tags |= {f"hardware.{name}": str(value) for name, value in machine.hardware.items()}

    def add_points(self, points: Iterable[tuple[str, int, float, int]]) -> None:
        """What the store lacks of `points`: name, step, value and time in milliseconds.

        The first of one name and step stays, so that it does not matter how many are written at once.
        """
        for name, step, value, logged in points:
            if (name, step) not in self._logged:
                self._new_points.setdefault((name, step), (value, logged))

    def write(self, tags: dict[str, str] | None = None) -> None:
        """Write what was added, and some tags."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(name, value, time, step) for (name, step), (value, time) in self._new_points.items()]
        params = [Param(name, str(value)) for name, value in self._new_params.items()]
        all_tags = [RunTag(name, value) for name, value in (self._new_tags | (tags or {})).items()]
        if metrics or params or all_tags:
            self._client.log_batch(self.run_id, metrics, params=params, tags=all_tags)
        self._logged |= self._new_points.keys()
        self._params |= self._new_params.keys()
        self._new_params, self._new_points, self._new_tags = {}, {}, {}

    def log_data_set(self, subject: Subject) -> None:
        """Log the data set, if the run lacks it."""
        from mlflow.exceptions import MlflowException

        if self._has_data:
            return
        try:
            self._client.log_inputs(self.run_id, [_data_set(subject)])
        except MlflowException:  # another machine has made the same data set in this moment; or else it fails again
            self._client.log_inputs(self.run_id, [_data_set(subject)])
        self._has_data = True

    def log_model(self, subject: Subject, model: Model) -> None:
        """Add the run's model, if it lacks it."""
        log_model(self._client, self._client.get_run(self.run_id), subject, model)
        self.has_model = True

    def log_artifact(self, path: Path) -> None:
        """Attach a file; one of the same name is replaced."""
        self._client.log_artifact(self.run_id, str(path))

    def log_json(self, name: str, content: dict[str, Any]) -> None:
        """Attach a JSON file of this name."""
        self._client.log_text(self.run_id, json.dumps(content, indent=1, sort_keys=True), name)

    def reopen(self) -> None:
        """Say that the run, and so the one above it, goes on."""
        for run in (self.parent_id, self.run_id):
            self._client.update_run(run, "RUNNING")

    def close(self, status: str, ended: int) -> None:
        """End the run; `ended` in milliseconds."""
        _end(self._client, self._run, status, ended)

    def close_parent(self, status: str, ended: int) -> None:
        """End the run above this one."""
        _end(self._client, self._client.get_run(self.parent_id).info, status, ended)

    @property
    def parent_id(self) -> str:
        """The run above this one, as the store has it now: `sync` may have put another in its place."""
        return str(self._client.get_run(self.run_id).data.tags[PARENT])


def _age(run: "RunInfo") -> tuple[int, str]:
    return run.start_time, run.run_id


def _end(client: "MlflowClient", run: "RunInfo", status: str, ended: int) -> None:
    client.set_terminated(run.run_id, status, max(ended, run.start_time, run.end_time or 0))  # a record may come late


def _create_database(path: Path, artifacts: str) -> None:
    """Create the tables in a file beside `path`: MLflow cannot repair a database that was killed in its making.

    One that is there is looked at first: MLflow itself would try for 100 seconds to open what is no database.
    """
    if path.exists():
        with closing(sqlite3.connect(path)) as database:
            database.execute("SELECT count(*) FROM sqlite_master")
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = path.with_name(f"{path.name}.new")
    _remove(temporary)  # left by a kill
    try:
        SqlAlchemyStore(sqlite_url(temporary), artifacts).engine.dispose()
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(database: Path) -> None:
    """A database with the files that SQLite keeps beside it."""
    for file in database.parent.glob(f"{database.name}*"):
        file.unlink()


def _points(row: dict[str, Any]) -> Iterator[tuple[str, int, float]]:
    """The metrics of a row as (name, step, value); the step is images seen, or GFLOPs where the name says so."""
    for name, value in row.items():
        if name in NOT_METRICS or not isinstance(value, int | float):
            continue
        yield name, row["images_seen"], float(value)
        if QUALITY.fullmatch(name):
            yield f"{name}_by_gflops", round(row["train_flops"] / 1e9), float(value)


def _series(record: Record) -> dict[tuple[str, int], float]:
    """(name, step) -> value; as in the record's run, the first value of one name and step stays."""
    points = [point for row in record.history for point in _points(row)]
    return {(name, step): value for name, step, value in reversed(points)}


def _means(records: list[Record]) -> dict[tuple[str, int], float]:
    """(name, step) -> mean over the records, where all of them measured; and how far their final values spread."""
    series = [_series(record) for record in records]
    common = [key for key in series[0] if all(key in points for points in series)]
    wanted = [key for key in common if OF_AN_ARM.fullmatch(key[0].removesuffix("_by_gflops"))]
    means = {key: fmean(points[key] for points in series) for key in wanted}
    if len(records) > 1:
        final = [name for name in records[0].summary if QUALITY.fullmatch(name)]
        means |= {(f"{name}_sd", 0): stdev(float(record.summary[name]) for record in records) for name in final}
    return means


def _pair_digest(record: Record, machine: Machine | None) -> str:
    return digest([asdict(record), bool(machine)])


def _data_set(subject: Subject) -> "DatasetInput":
    """The prepared data as an input of the run, with DVC's hash of it, or else our own, as the digest."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = subject.record.data
    md5 = subject.dvc.get("data_md5") or data["sha256"]
    source = json.dumps({"uri": "data/prepared"})
    data_set = Dataset(data["name"], md5[:36], "local", source, profile=json.dumps(data))  # 36: MLflow's limit
    return DatasetInput(data_set, [InputTag("mlflow.data.context", "training")])


def _tags(subject: Subject) -> dict[str, str]:
    tags = {
        "maskdm.stage": subject.record.stage,
        "maskdm.arm": subject.record.arm,
        "maskdm.dvc_stage": subject.dvc.get("stage"),
        "maskdm.comparison": subject.parent["maskdm.comparison"],
        "maskdm.params_hash": digest(subject.record.params),
        "maskdm.data_hash": subject.record.data["sha256"][:16],
        "mlflow.source.name": subject.source,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": subject.git.get("commit"),
        "mlflow.source.git.branch": subject.git.get("branch"),
        "maskdm.git_dirty": subject.git.get("dirty"),
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def _now() -> int:
    """Milliseconds since the epoch, as MLflow counts time."""
    return int(1000 * time.time())


def _reason(root: Path, error: BaseException) -> str:
    """Which store, and the innermost cause of what it raised: `http://server: Connection refused`.

    A `KeyError` is none: it says a name alone.
    """
    while error.__context__ and not isinstance(error.__context__, KeyError):
        error = error.__context__
    said = textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
    is_lost = isinstance(error, sqlite3.DatabaseError) or ("database schema" in said and not os.environ.get(VARIABLE))
    remedy = "; delete it, and `maskdm sync` makes it again" if is_lost else ""
    return without_passwords(f"{store_uri(root)}: {said}") + remedy
