"""MLflow, and the only file that imports it: one experiment, a run per arm or study, below it one per stage or trial.

The store is a view of the record files. No failure of it stops a training, and `sync` rebuilds it from the records.
"""

import hashlib
import json
import logging
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from tqdm import tqdm

from maskdm.runtime.errors import MaskDMError, StoppedEarly
from maskdm.runtime.files import expanded, sqlite_path, sqlite_url
from maskdm.tracking.records import Machine, Record, dvc_state, git_state, read_records

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

EXPERIMENT = "maskdm"
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
LOCK_SECONDS = 120

# In a row, these say where and how it was measured; every other number is a metric.
NOT_METRICS = {
    *("step", "phase", "fraction", "images_seen"),
    *("samples", "reference", "num_inference_steps", "eta", "input_size"),
}
QUALITY = re.compile(r"heldout_loss|fid|fd_.*|kid")  # also logged against compute, to compare arms in the UI


@dataclass(frozen=True)
class Subject:
    """What one run is about."""

    record: Record  # its history and summary are not read
    git: dict[str, Any]  # of `records.git_state`
    dvc: dict[str, Any]  # of `records.dvc_state`

    @property
    def name(self) -> str:
        """As DVC names the stage; of a trial, the stage that makes it and the trial."""
        return f"{self.record.stage}@{self.record.key}"

    @property
    def parent(self) -> dict[str, str]:
        """Tags of the run that this one is nested under: the arm's, or that of the study whose trial it is."""
        study, slash, _ = self.record.key.rpartition("/")
        if slash:
            return {"maskdm.role": "study", "maskdm.study": f"{self.record.stage}@{study}"}
        return {"maskdm.role": "arm", "maskdm.arm": self.record.arm}


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
    """Logs as long as the store answers. After its first failure it says so, once, and then does nothing."""

    _run: "StoredRun"
    _monitor: "SystemMetricsMonitor | None" = None

    def __init__(self, root: Path, subject: Subject) -> None:
        self._root = root
        self._working = True
        self._attempt(lambda: self._open(subject))

    def log_history(self, rows: list[dict[str, Any]]) -> None:
        """Log what the store lacks of `rows`, the complete history so far."""
        self._attempt(lambda: self._run.log_history(rows, [_now()] * len(rows)))

    def log_machine(self, machine: Machine) -> None:
        """Log time, throughput, memory and hardware of the finished stage."""
        self._attempt(lambda: self._run.log_machine(machine, _now()))

    def log_artifact(self, path: Path) -> None:
        """Attach a file: a sample grid, the record."""
        self._attempt(lambda: self._run.log_artifact(path))

    def tag(self, name: str, value: str) -> None:
        """Set a tag."""
        self._attempt(lambda: self._run.tag(name, value))

    def close(self, status: str) -> None:
        """End the run; `live_run` calls it."""
        if self._monitor:
            self._monitor.finish()  # it keeps its own failures to itself
        self._attempt(lambda: self._run.close(status, _now()))

    def _open(self, subject: Subject) -> None:
        self._run = Store(self._root).run(subject, _now())
        self._run.reopen()

        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(self._run.run_id, resume_logging=True, tracking_uri=store_uri(self._root))
        self._monitor.start()

    def _attempt(self, action: Callable[[], None]) -> None:
        if not self._working:
            return
        try:
            action()
        except Exception as error:  # whatever it is, it must not stop a training
            self._working = False
            tqdm.write(
                f"warning: tracking stops ({_reason(self._root, error)}); training goes on, the records are kept "
                "and `maskdm sync` uploads them",
                file=sys.stderr,
            )


def sync(root: Path) -> int:
    """Bring the store up to the committed records: after a clone, a DVC cache hit, or without a server in training.

    Returns:
        How many runs were added or completed.

    Raises:
        MaskDMError: a record is corrupt, or the store cannot be reached.
    """
    runs = [pair for pair in read_records(root) if pair[0].history]  # a stage without a step was no run
    try:
        store = Store(root)
        return sum(_sync_run(root, store, *pair) for pair in tqdm(runs, desc="sync", unit="run"))
    except Exception as error:
        raise MaskDMError(f"tracking store {_reason(root, error)}") from error


def _sync_run(root: Path, store: "Store", record: Record, machine: Machine | None) -> bool:
    """Whether something was missing."""
    git, dvc = (machine.git, machine.dvc) if machine else ({}, {})
    subject = Subject(record, git, dvc)
    started, *times = _timestamps(record, machine)
    run = store.run(subject, started)
    run.log_history(record.history, times)
    if machine:
        run.log_machine(machine, max(times, default=started))
    if run.changed:
        run.log_json(f"{Path(record.key).name}.json", asdict(record))
        run.close("FINISHED", max(times, default=started))
    return run.changed


def _timestamps(record: Record, machine: Machine | None) -> list[int]:
    """When the stage began and, about, when each row was measured; now, if nobody knows."""
    if machine is None:
        return [_now()] * (1 + len(record.history))
    began = datetime.fromisoformat(machine.started_at).timestamp()
    seconds = accumulate(machine.seconds) if record.stage == "evaluate" else machine.seconds
    return [int(1000 * began), *(int(1000 * (began + elapsed)) for elapsed in seconds)]


def ui_command(root: Path) -> list[str]:
    """The command that shows the project's own store on http://127.0.0.1:5000; run it with `ENVIRONMENT` set.

    Runs are under "Model training"; their charts grouped by `maskdm.arm` draw one line an arm through all its stages.
    """
    store = sqlite_url(root / "mlflow.db")
    return [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--workers", "1"]


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
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # failures are reported here, in one line

        uri, artifacts = store_uri(root), (root.resolve() / "mlartifacts").as_uri()
        # One process at a time creates things: two that create the tables, or an arm's run, trip over each other.
        self._lock = FileLock(root / "mlflow.db.lock", timeout=LOCK_SECONDS)
        local = uri.startswith("sqlite")
        if local:
            with self._lock:
                _create_database(sqlite_path(uri), artifacts)
        self._client = MlflowClient(uri)
        with self._lock:
            # Pinned, because MLflow's own choice depends on the working directory. A server has a place of its own.
            self._experiment_id = self._experiment(artifacts if local else None)

    def run(self, subject: Subject, started: int) -> "StoredRun":
        """The run of `subject`, found by its identity or created below its parent; `started` in milliseconds."""
        with self._lock:
            name = list(subject.parent.values())[-1]
            parent = self._find_or_create(subject.parent, {}, name, started)
            identity = {"maskdm.run_id": f"{subject.name}:{subject.record.identity}"}
            tags = _tags(subject) | {"mlflow.parentRunId": parent.info.run_id}
            run = self._find_or_create(identity, tags, subject.name, started)
            stored = StoredRun(self._client, run, parent)
            stored.describe(subject)
            return stored

    def _experiment(self, artifacts: str | None) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment:
            return str(experiment.experiment_id)
        return str(self._client.create_experiment(EXPERIMENT, artifacts))

    def _find_or_create(self, identity: dict[str, str], tags: dict[str, str], name: str, started: int) -> "Run":
        condition = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in identity.items())
        found = self._client.search_runs([self._experiment_id], condition, max_results=1)
        if found:
            return self._client.get_run(found[0].info.run_id)
        return self._client.create_run(self._experiment_id, started, identity | tags, run_name=name)


class StoredRun:
    """One run and what the store holds of it, so that nothing is logged twice. Every method raises what MLflow raises.

    Attributes:
        run_id: MLflow's.
        changed: whether anything was missing: it was not finished, or something has been logged.
    """

    def __init__(self, client: "MlflowClient", run: "Run", parent: "Run") -> None:
        self.run_id: str = run.info.run_id
        self.changed: bool = run.info.status != "FINISHED"
        self._client = client
        self._run, self._parent = run.info, parent.info
        self._params = set(run.data.params)
        self._has_data = bool(run.inputs and run.inputs.dataset_inputs)
        self._logged = {
            (name, metric.step)
            for name in run.data.metrics
            if not name.startswith("system/")
            for metric in client.get_metric_history(self.run_id, name)
        }

    def describe(self, subject: Subject) -> None:
        """Log the parameters and the data set, if the run lacks them. A parameter once logged stays as it is."""
        from mlflow.entities import Param

        missing = [Param(name, str(value)) for name, value in subject.record.params.items() if name not in self._params]
        self._client.log_batch(self.run_id, params=missing)
        if not self._has_data:
            self._client.log_inputs(self.run_id, [_data_set(subject)])
        self.changed |= bool(missing) or not self._has_data

    def log_history(self, rows: list[dict[str, Any]], times: list[int]) -> None:
        """Log the metrics of `rows`, measured at `times` (milliseconds), against images seen and compute."""
        self._log((*point, time) for row, time in zip(rows, times, strict=True) for point in _points(row))

    def log_machine(self, machine: Machine, time: int) -> None:
        """Log time, throughput and memory as metrics, hardware as tags."""
        figures = {
            "stage_seconds": machine.stage_seconds,
            "images_per_second": machine.images_per_second,
            "peak_memory_bytes": machine.peak_memory_bytes,
        }
        points = ((name, 0, float(value), time) for name, value in figures.items() if value is not None)
        self._log(points, {f"hardware.{name}": str(value) for name, value in machine.hardware.items()})

    def log_artifact(self, path: Path) -> None:
        """Attach a file; one of the same name is replaced."""
        self._client.log_artifact(self.run_id, str(path))

    def log_json(self, name: str, content: dict[str, Any]) -> None:
        """Attach a JSON file of this name."""
        self._client.log_text(self.run_id, json.dumps(content, indent=1, sort_keys=True), name)

    def tag(self, name: str, value: str) -> None:
        """Set a tag."""
        self._client.set_tag(self.run_id, name, value)

    def reopen(self) -> None:
        """Say that the run, and so the one it is nested under, goes on."""
        for run in (self._parent, self._run):
            self._client.update_run(run.run_id, "RUNNING")

    def close(self, status: str, ended: int) -> None:
        """End the run and the one it is nested under; `ended` in milliseconds."""
        for run in (self._run, self._parent):
            latest = max(ended, run.start_time, run.end_time or 0)  # a record synced late may be older than its parent
            self._client.set_terminated(run.run_id, status, latest)

    def _log(self, points: Iterable[tuple[str, int, float, int]], tags: Mapping[str, str] | None = None) -> None:
        from mlflow.entities import Metric, RunTag

        new = {(name, step): (value, time) for name, step, value, time in points if (name, step) not in self._logged}
        if not new:
            return
        metrics = [Metric(name, value, time, step) for (name, step), (value, time) in new.items()]
        self._client.log_batch(self.run_id, metrics, tags=[RunTag(*tag) for tag in (tags or {}).items()])
        self._logged |= new.keys()
        self.changed = True


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
    for leftover in path.parent.glob(f"{temporary.name}*"):
        leftover.unlink()
    SqlAlchemyStore(sqlite_url(temporary), artifacts).engine.dispose()
    os.replace(temporary, path)


def _points(row: dict[str, Any]) -> Iterator[tuple[str, int, float]]:
    """The metrics of a row as (name, step, value); the step is images seen, or GFLOPs where the name says so."""
    for name, value in row.items():
        if name in NOT_METRICS or not isinstance(value, int | float):
            continue
        yield name, row["images_seen"], float(value)
        if QUALITY.fullmatch(name):
            yield f"{name}_by_gflops", round(row["train_flops"] / 1e9), float(value)


def _tags(subject: Subject) -> dict[str, str]:
    params = json.dumps(subject.record.params, sort_keys=True, default=str)
    tags = {
        "maskdm.stage": subject.record.stage,
        "maskdm.key": subject.record.key,
        "maskdm.arm": subject.record.arm,
        "maskdm.dvc_stage": subject.dvc.get("stage"),
        "maskdm.params_hash": hashlib.sha256(params.encode()).hexdigest()[:16],
        "maskdm.data_hash": subject.record.data["sha256"][:16],
        "mlflow.source.name": f"dvc.yaml:{subject.name}",  # as `dvc repro` takes it
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": subject.git.get("commit"),
        "mlflow.source.git.branch": subject.git.get("branch"),
        "maskdm.git_dirty": subject.git.get("dirty"),
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def _data_set(subject: Subject) -> "DatasetInput":
    """The prepared data as an input of the run, with DVC's hash of it, or else our own, as the digest."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = subject.record.data
    digest = subject.dvc.get("data_md5") or data["sha256"]
    source = json.dumps({"uri": "data/prepared"})
    data_set = Dataset(data["name"], digest[:36], "local", source, profile=json.dumps(data))  # 36: MLflow's limit
    context = "evaluation" if subject.record.stage == "evaluate" else "training"
    return DatasetInput(data_set, [InputTag("mlflow.data.context", context)])


def _now() -> int:
    """Milliseconds since the epoch, as MLflow counts time."""
    return int(1000 * time.time())


def _reason(root: Path, error: BaseException) -> str:
    """Which store, and the innermost cause of what it raised: `http://server: Connection refused`."""
    where = re.sub(r"//[^/@]+@", "//", store_uri(root))  # without a password
    while error.__context__:
        error = error.__context__
    damaged = "; delete it, and `maskdm sync` makes it again" if isinstance(error, sqlite3.DatabaseError) else ""
    return f"{where}: {' '.join(str(error).split()) or type(error).__name__}{damaged}"
