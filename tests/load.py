"""Many writers at once, and a server that is killed on the way: is anything lost or doubled?

python -m tests.load {file,server,search} [--writers 8] [--rows 100] [--kills 3]

`file`: writers of one project's `mlflow.db`. `server`: writers of projects of their own, as on several machines, and
the server of compose.yaml with PostgreSQL; both are killed and started again while they write. `search`: workers at one
study in PostgreSQL, one of which is killed, as is the server. Without a difference it prints `equal`. It needs Debian's
`postgresql`. The slow tests run it on a small scale.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pandas as pd

import maskdm.search
from maskdm.config.params import Search
from maskdm.search import Attempt, claim_lock, open_storage, open_study, run_trials, trials_frame
from maskdm.tracking import mlflow_store
from maskdm.tracking.mlflow_models import Model
from maskdm.tracking.records import Machine, Record, write_record
from tests.servers import MLflow, Postgres, mlflow_server, postgres

ARMS = 2  # that the writers belong to
ENDS_WITHIN = 1200  # seconds, on a machine that is busy
DATA = {"name": "load", "sha256": "ab" * 32, "train": 1500, "heldout": 297, "shape": [1, 8, 8]}
GRID = (4, 4)  # tokens, of the search
os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"  # a server here may be busy for long
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["maskdm.search", "mlflow.pyfunc", "psycopg"])  # a child begins with them


# --- tracking ------------------------------------------------------------------------------------------------


def record(writer: int, rows: int) -> Record:
    """What a writer tracks."""
    arm, seed = f"arm{writer % ARMS}", writer // ARMS
    history = [
        {
            "step": n,
            "images_seen": 64 * n,
            "train_flops": 1e9 * n,
            "loss": 1 / (n + writer),
            "heldout_loss": 2 / (n + writer),
        }
        for n in range(1, rows + 1)
    ]
    summary = {"heldout_loss": history[-1]["heldout_loss"]}
    params = {"arm": arm, "seed": seed}
    return Record("default", f"{arm}/{seed}", arm, f"writer{writer}", params, DATA, summary, history)


def machine(rows: int) -> Machine:
    """Where and when it was measured."""
    seconds = [0.5 * number for number in range(1, rows + 1)]
    return Machine("2026-01-02T03:04:05+00:00", {}, {}, {"device": "cpu"}, seconds[-1], 64.0, None, seconds)


def write(root: Path, uri: str | None, writer: int, rows: int, pause: float, meeting: Path, count: int) -> None:
    """A training that tracks `rows` measurements, and then its model."""
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    mlflow_store.REST_SECONDS, mlflow_store.REST_FACTOR = 1.0, 0  # a minute is long for a toy
    root.mkdir(exist_ok=True)
    whole = record(writer, rows)
    with mlflow_store.live_run(root, whole) as run:
        meet(meeting, count)
        for number in range(1, rows + 1):
            run.log_history(whole.history[:number])
            time.sleep(pause)
        run.log_machine(machine(rows))
        run.log_model(Model(fill, has_classes=False, options={}))


def fill(folder: Path) -> None:
    """The files of a model that nobody loads."""
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(1000))


def differences(root: Path, uri: str, writers: int, rows: int) -> list[str]:
    """What a store lacks of all that was written, or has twice."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("maskdm")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    found = Counter(run.info.run_name for run in runs)
    wanted = {f"arm{writer % ARMS}, seed {writer // ARMS}": record(writer, rows) for writer in range(writers)}
    names = Counter([*wanted, *{trial.arm for trial in wanted.values()}])
    counts = {name: (found[name], names[name]) for name in found | names}
    wrong = [f"{name}: {has} runs instead of {due}" for name, (has, due) in counts.items() if has != due]
    parents = {run.info.run_id: run.info.run_name for run in runs}
    for run in runs:
        name, trial = run.info.run_name, wanted.get(run.info.run_name)
        if trial is None:
            continue
        if run.info.status != "FINISHED" or parents.get(run.data.tags["mlflow.parentRunId"]) != trial.arm:
            wrong.append(f"{name}: {run.info.status}, below {parents.get(run.data.tags['mlflow.parentRunId'])}")
        for metric in ("loss", "heldout_loss"):
            points = sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric))
            if points != [(row["images_seen"], row[metric]) for row in trial.history]:
                wrong.append(f"{name}: {len(points)} points of {metric} instead of {rows}")
    models = Counter(model.name for model in client.search_logged_models([experiment.experiment_id]))
    if models != Counter(f"{trial.arm}-seed{trial.params['seed']}" for trial in wanted.values()):
        wrong.append(f"models: {dict(models)}")
    versions = Counter(version.name for version in client.search_model_versions())
    if versions != Counter(f"load-{trial.arm}" for trial in wanted.values()):
        wrong.append(f"versions: {dict(versions)}")
    return wrong


def sync(root: Path, uri: str | None, writers: int, rows: int) -> int:
    """What `maskdm sync` does, with the records of all writers in one project."""
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    root.mkdir(exist_ok=True)
    for writer in range(writers):
        write_record(root, record(writer, rows), machine(rows))
    return mlflow_store.sync(root, lambda _: Model(fill, has_classes=False, options={}))


def track_in_a_file(folder: Path, writers: int, rows: int, pause: float) -> list[str]:
    """Writers of one project's store."""
    run_all([partial(write, folder, None, n, rows, pause, folder / "meeting", writers) for n in range(writers)])
    return differences(folder, mlflow_store.store_uri(folder), writers, rows)


def track_on_a_server(folder: Path, writers: int, rows: int, pause: float, kills: int) -> list[str]:
    """Writers on several machines; `maskdm sync` brings what a server missed that was away at a writer's end."""
    with postgres("p@ss/w:rd") as database:
        database.execute("CREATE DATABASE mlflow")
        with mlflow_server(folder, database) as server:
            meeting = folder / "meeting"
            jobs = [
                partial(write, folder / f"machine{n}", server.url, n, rows, pause, meeting, writers + 1)
                for n in range(writers)
            ]
            run_all(jobs, partial(restart, server, database, kills, rows * pause, meeting, writers + 1))
            completed = call(partial(sync, folder / "sync", server.url, writers, rows))
            print(f"sync completed {completed} of {writers} runs", flush=True)
            wrong = differences(folder / "sync", server.url, writers, rows)
            again = call(partial(sync, folder / "sync", server.url, writers, rows))
            return [*wrong, *([f"a second sync changes {again} runs"] if again else [])]


def restart(server: MLflow | None, database: Postgres, times: int, within: float, meeting: Path, count: int) -> None:
    """Kill the servers and start them again, now one, now the other, at random moments of `within` seconds."""
    meet(meeting, count)
    draw = random.Random(0)
    for number in range(times):
        time.sleep(draw.uniform(0.1, 0.5) * within / times)
        if server and number % 2 == 0:
            server.kill()
            time.sleep(draw.uniform(0, 3))
            server.start()
        else:
            database.kill()
            time.sleep(draw.uniform(0, 3))
            database.start()
        print(f"restart {number + 1}: {'MLflow' if server and number % 2 == 0 else 'PostgreSQL'}", flush=True)


# --- search --------------------------------------------------------------------------------------------------


def settings(writers: int, trials: int) -> Search:
    space = {
        **{"strategies": ["patch", "block", "crop"], "ratios": [0.5, 0.75], "blocks": [2], "crops": [2, 3]},
        **{"max_phases": 2, "share": [0.1, 0.5], "batch_sizes": [8, 16], "lr": [2e-3, 2e-2]},
    }
    own = {"seed": 0, "train_flops": 3e9, "trials": trials, "parallel": writers, "space": space}
    return Search.model_validate({**own, "finetune": {"batch_size": 8}, "confirm": 1, "confirm_seeds": [101]})


def measure(attempt: Attempt, pause: float) -> float:
    """A trial whose losses are decided by its number and its settings."""
    share = attempt.phases[0].share
    assert share is not None
    loss = share + attempt.number * 7 % 5 / 5
    for spent in (0.25, 0.5, 0.75, 1.0):
        time.sleep(pause)
        attempt.report(spent, loss / spent)
    return loss


def search(url: str | None, folder: Path, writers: int, trials: int, pause: float, meeting: Path, count: int) -> None:
    """A worker at the study."""
    maskdm.search.HEARTBEAT_SECONDS, maskdm.search.GRACE_SECONDS = 2, 10
    folder.mkdir(exist_ok=True)
    claims: AbstractContextManager[object] = claim_lock(url, folder) if url is None else nullcontext()
    study = open_study(open_storage(url, folder), "load", trials)
    meet(meeting, count)
    run_trials(study, settings(writers, trials), GRID, 0, partial(measure, pause=pause), claims)


def trials_of(url: str | None, folder: Path, writers: int, trials: int) -> pd.DataFrame:
    study = open_study(open_storage(url, folder), "load", trials)
    return trials_frame(study, settings(writers, trials).space, GRID)


def search_on_a_server(folder: Path, writers: int, trials: int, pause: float, kills: int) -> list[str]:
    """Workers at one study, the first of which is killed: they try what one worker tries that nobody disturbs."""
    call(partial(search, None, folder / "alone", writers, trials, 0.0, folder / "nobody", 1))
    alone = trials_of(None, folder / "alone", writers, trials)
    with postgres() as database:
        open_study(open_storage(database.url, folder), "load", trials)
        meeting = folder / "meeting"
        jobs = [
            partial(search, database.url, folder / f"machine{n}", writers, trials, pause, meeting, writers + 1)
            for n in range(writers)
        ]
        seconds = trials / writers * 4 * pause
        run_all(jobs, partial(restart, None, database, kills, seconds, meeting, writers + 1), dies=True)
        together = trials_of(database.url, folder, writers, trials)
    if len(together) != len(alone):
        return [f"{len(together)} trials instead of {len(alone)}"]
    return [] if together.equals(alone) else together.compare(alone).to_string().splitlines()


# --- processes -----------------------------------------------------------------------------------------------


def meet(place: Path, count: int) -> None:
    """Wait until as many are here: all begin at once."""
    place.mkdir(exist_ok=True)
    (place / str(os.getpid())).touch()
    deadline = time.monotonic() + ENDS_WITHIN
    while len(list(place.iterdir())) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{place}: not all have come")
        time.sleep(0.1)


def run_all(jobs: Sequence[Callable[[], None]], disturb: Callable[[], None] = lambda: None, dies: bool = False) -> None:
    """Run all jobs at once, with something that happens meanwhile.

    Raises:
        RuntimeError: one does not end well; where `dies`, the first one is killed instead.
    """
    processes: list[ForkServerProcess] = [CONTEXT.Process(target=job) for job in jobs]
    for process in processes:
        process.start()
    try:
        disturb()
        if dies:
            processes[0].kill()
        for process in processes:
            process.join(ENDS_WITHIN)
        wanted = [-signal.SIGKILL if dies and process is processes[0] else 0 for process in processes]
        if dies and processes[0].exitcode == 0:
            wanted[0] = 0  # it was done before
        if [process.exitcode for process in processes] != wanted:
            raise RuntimeError(f"a writer failed: {[process.exitcode for process in processes]}")
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()


def _answer(job: Callable[[], Any], results: Any) -> None:
    results.put(job())


def call(job: "partial[Any]") -> Any:
    """Run one job in a process of its own, and return what it returns.

    Raises:
        RuntimeError: it does not end well.
    """
    results = CONTEXT.SimpleQueue()
    process = CONTEXT.Process(target=_answer, args=(job, results))
    process.start()
    process.join(ENDS_WITHIN)
    if process.exitcode:
        raise RuntimeError(f"{job.func.__name__} failed")
    return results.get()


def main() -> None:
    """Run one of the three, and say what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["file", "server", "search"])
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=100, help="measurements of a writer, or trials of the search")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two measurements")
    parser.add_argument("--kills", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maskdm-load-") as name:
        folder, began = Path(name), time.monotonic()
        if given.what == "file":
            wrong = track_in_a_file(folder, given.writers, given.rows, given.pause)
        else:
            under = track_on_a_server if given.what == "server" else search_on_a_server
            wrong = under(folder, given.writers, given.rows, given.pause, given.kills)
    print("\n".join(wrong) or f"equal: {given.writers} writers, {given.rows} each, {time.monotonic() - began:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
