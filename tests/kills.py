"""Does the same command go on after a power cut? `dvc repro`, killed again and again, against a run left alone.

python -m tests.kills [--points 20] [--seed 0] [--folder build/kills]

Both runs are of a toy comparison, each in a copy of the project. The first one is timed: when each activity (an arm's
pre-training, fine-tuning or evaluation, with all seeds) begins and how long it takes, with the writing of its results
and DVC's own work behind it. Points are then drawn uniformly from the time of each kind of activity. At each of them
SIGKILL ends the second run's whole process group, and the same command starts it again.
"""

import argparse
import hashlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from maskdm.tracking.mlflow_store import ENVIRONMENT as MLFLOW_SETTINGS
from maskdm.tracking.records import read_records
from tests.workspace import ENVIRONMENT, PROJECT, make_workspace, write_params

# Long enough for several checkpoints a phase, and for sampling and evaluation to be hit.
SETTINGS: dict[str, Any] = {
    "budget": {"train_flops": 4e10, "snapshots": [0.25, 0.5, 1.0]},
    "sampling": {"sampler": "ddim", "num_inference_steps": 40, "eta": 1.0, "batch_size": 64},
    "evaluation": {
        "extractor": "effnet_lite0",
        "input_size": 64,
        "weights": None,
        "batch_size": 32,
        "samples": 256,
        "reference": 256,
        "kid_subsets": 10,
        "kid_subset_size": 64,
        "nearest_k": 3,
    },
}
TARGET = "report"  # and all before it; a search draws other trials after a kill (tests/pipeline/test_search.py)
USUAL, OFTEN = "\nCHECKPOINT_SECONDS = 30.0", "\nCHECKPOINT_SECONDS = 0.5"

# What the output shows: DVC's line for a stage, and the progress bars, each with how far it is.
SHOWN = re.compile(r"Running stage '(?P<stage>.+?)'|\r(?P<bar>[^\r\n:]+): +(?P<percent>\d+)%")
KINDS = {
    "pre-training": re.compile(r"pretrain@\w+ pretrain "),
    "fine-tuning": re.compile(r"finetune@\w+ finetune "),
    "evaluation": re.compile(r"evaluate@\w+ evaluate "),
}
OF_A_RUN = ("timing.json", "SHA256SUMS")  # files that hold seconds, and the sums of these
OF_THE_MACHINE = re.compile(
    r"(train_|stage_)?seconds.*|(images|tokens|flops)_per_second.*|of_flop_ideal|(peak_)?memory_bytes.*"
)


@dataclass(frozen=True)
class Activity:
    """A stretch of the run, up to the beginning of the next one."""

    name: str  # the DVC stage and, once its start-up is over, its progress bar
    began: float  # seconds since the start of the command

    @property
    def kind(self) -> str | None:
        """One of `KINDS`; None for what no point is drawn from."""
        return next((kind for kind, pattern in KINDS.items() if pattern.match(self.name)), None)


@dataclass(frozen=True)
class Point:
    """Where to kill."""

    index: int  # of the activity in the uninterrupted run
    seconds: float  # since it began
    duration: float  # of the activity


class Repro:
    """`dvc repro`, as `make repro` runs it, in a process group of its own, watched through its output."""

    def __init__(self, folder: Path, target: str | None = None) -> None:
        self.folder, self.output = folder, ""
        # As `make repro` does: a kill can tear DVC's own lock file.
        subprocess.run(["make", "--silent", "-f", PROJECT / "Makefile", "unlock"], cwd=folder, check=True)
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            ["dvc", "repro", *([target] if target else [])],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def activities(self) -> Iterator[Activity]:
        """Every activity, as it begins; the last one is the end of the command.

        Raises:
            RuntimeError: the command failed.
        """
        stage, last, position = "", "", 0
        while chunk := os.read(self._process.stdout.fileno(), 65536):  # type: ignore[union-attr]
            self.output += chunk.decode(errors="replace")
            for shown in SHOWN.finditer(self.output, position):
                position = shown.end()
                stage = shown["stage"] or stage
                name = stage if shown["stage"] else f"{stage} {shown['bar']}"
                if name != last:  # else the same bar, further on
                    yield self._now(name)
                last = name
        if self._process.wait():
            raise RuntimeError(f"dvc repro failed:\n{self.output}")
        yield self._now("end")

    def kill(self) -> None:
        """SIGKILL to DVC, to the stage and to all they have started."""
        with suppress(ProcessLookupError):  # it may have come to its end
            os.killpg(self._process.pid, signal.SIGKILL)
        rest, _ = self._process.communicate()
        self.output += rest.decode(errors="replace")
        wait_for_workers(self.folder)

    @property
    def stage(self) -> str:
        """The DVC stage that began last."""
        return [shown["stage"] for shown in SHOWN.finditer(self.output) if shown["stage"]][-1]

    def _now(self, name: str) -> Activity:
        return Activity(name, time.monotonic() - self._started)


def wait_for_workers(folder: Path, seconds: float = 30) -> None:
    """Until the workers of the stage, which are no longer of its process group, have noticed that it is gone."""
    deadline = time.monotonic() + seconds
    while any(Path(os.readlink(link)) == folder.resolve() for link in working_folders()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{folder}: a worker outlives its stage")
        time.sleep(0.05)


def working_folders() -> Iterator[Path]:
    """The links to the working folders of all other processes that can be seen."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(process.name) != os.getpid() and os.readlink(process / "cwd"):
                yield process / "cwd"


def make_project(folder: Path, **settings: Any) -> None:
    """A toy comparison in `folder`, in a copy of the project whose trainer saves a checkpoint twice a second.

    It saves one every 30 seconds, longer than a toy's phase takes. The number is the only thing that is changed.
    """
    make_workspace(folder, "smoke")
    write_params(folder, **settings)
    often(folder)


def often(folder: Path) -> None:
    """Let the trainer of the project in `folder` save a checkpoint twice a second."""
    path = folder / "maskdm" / "training" / "loop.py"
    code = path.read_text()
    assert code.count(USUAL) == 1, f"{path}: no {USUAL}"
    path.write_text(code.replace(USUAL, OFTEN))


def draw_points(activities: list[Activity], count: int, seed: int, only: str = "") -> list[Point]:
    """`count` points in the order of the run, as many of each kind, uniform over the time that this kind took.

    Args:
        activities: of the uninterrupted run.
        count: how many.
        seed: of the draw.
        only: a part of the names of those to draw from.
    """
    draw = random.Random(seed)
    spans = [Point(i, 0.0, b.began - a.began) for i, (a, b) in enumerate(itertools.pairwise(activities))]
    points = []
    for kind in itertools.islice(itertools.cycle(KINDS), count):
        own = [span for span in spans if activities[span.index].kind == kind and only in activities[span.index].name]
        (span,) = draw.choices(own, [span.duration for span in own])
        points.append(Point(span.index, draw.uniform(0, span.duration), span.duration))
    return sorted(points, key=lambda point: (point.index, point.seconds))


def kill_at(folder: Path, point: Point, activities: list[Activity], target: str | None = None) -> str:
    """Run `dvc repro` in `folder` up to `point` and kill it; returns where that was, and what was on disk.

    If the run is beyond the activity already, or is so before the time has come, it is killed where it is.
    """
    order = {activity.name: index for index, activity in enumerate(activities)}
    repro = Repro(folder, target)
    for activity in repro.activities():
        if order.get(activity.name, -1) >= point.index:
            break
    time.sleep(point.seconds if order[activity.name] == point.index else 0.0)
    repro.kill()
    return f"{repro.stage:<20} {point.seconds:5.2f} s after {activity.name:<28} {on_disk(folder, repro.stage)}"


def on_disk(folder: Path, stage: str) -> str:
    """What the trials of a stage can go on from, e.g. `0: phase 0 at step 81`. A torn file is an error."""
    found = []
    for work in sorted(folder.glob(f"work/{stage.replace('@', '-')}-*/*")):
        seed = work.parent.name.rpartition("-")[2]
        for path in sorted(work.glob("phase*.pt")):
            found.append(f"{seed}: {path.stem} at step {torch.load(path, weights_only=True)['step']}")
        if stage.startswith("evaluate"):
            found.append(f"{seed}: {len(list(work.glob('judged/*.json')))} snapshots judged")
    return "; ".join(found) or "nothing under way"


def facts(folder: Path, only: str = "") -> dict[str, Any]:
    """All that must not depend on interruptions, by name; those whose name contains `only`."""
    found: dict[str, Any] = {}
    for path in (*folder.glob("data/**/*"), *folder.glob("runs/**/*"), *folder.glob("records/reference*.json")):
        if path.is_file() and path.name not in OF_A_RUN:
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for record, _ in read_records(folder):
        found[f"records/{record.stage}/{record.key}"] = asdict(record)
    for path in folder.glob("reports/**/*.csv"):
        table = pd.read_csv(path)
        columns = [name for name in table if not OF_THE_MACHINE.fullmatch(str(name))]
        found[str(path.relative_to(folder))] = table[columns].to_csv()
    found |= tracked(folder)
    return {name: fact for name, fact in found.items() if only in name}


def tracked(folder: Path) -> dict[str, Any]:
    """What MLflow's store holds: each run's status, parameters and every point of its metrics, as often as it is there.

    Of metrics of the machine only the steps are looked at, and those of the system, sampled by the clock, not at all.
    """
    if not (folder / "mlflow.db").is_file():
        return {}
    os.environ.update(MLFLOW_SETTINGS)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [client.get_run(run.info.run_id) for run in client.search_runs(experiments, max_results=1000)]
    names = {run.info.run_id: run.info.run_name for run in runs}
    found: dict[str, Any] = {f"mlflow {name}: runs": number for name, number in Counter(names.values()).items()}
    for run in runs:
        name, parent = run.info.run_name, names.get(run.data.tags.get("mlflow.parentRunId"))
        found[f"mlflow {name}: status, parent, params"] = (run.info.status, parent, sorted(run.data.params.items()))
        for metric in (metric for metric in run.data.metrics if not metric.startswith("system/")):
            history = client.get_metric_history(run.info.run_id, metric)
            timed = OF_THE_MACHINE.fullmatch(metric)
            points = sorted((point.step, None if timed else point.value) for point in history)
            found[f"mlflow {name}: {metric}"] = points
    models = Counter(model.name for model in client.search_logged_models(experiments)) if experiments else {}
    found |= {f"mlflow model {name}": number for name, number in models.items()}
    for registered in client.search_registered_models():
        versions = client.search_model_versions(f"name='{registered.name}'")
        found[f"mlflow registry {registered.name}"] = (len(versions), sorted(registered.aliases))
    return found


def differences(killed: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """What is not the same in both, in words."""
    return [
        f"{name}: {str(killed.get(name, 'missing'))[:200]} instead of {str(whole.get(name, 'nothing'))[:200]}"
        for name in sorted(killed.keys() | whole.keys())
        if killed.get(name) != whole.get(name)
    ]


def main() -> None:
    """Run both, print a line a kill, and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/kills"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    whole, killed = arguments.folder / "whole", arguments.folder / "killed"
    for folder in (whole, killed):
        make_project(folder, **SETTINGS)

    activities = list(Repro(whole, TARGET).activities())
    print(f"without a kill: {activities[-1].began:.0f} s", flush=True)
    for number, point in enumerate(draw_points(activities, arguments.points, arguments.seed), 1):
        print(f"kill {number:2d}: {kill_at(killed, point, activities, TARGET)}", flush=True)
    list(Repro(killed, TARGET).activities())

    expected = facts(whole)
    different = differences(facts(killed), expected)
    again = [activity.name for activity in Repro(killed, TARGET).activities()]
    if again != ["end"]:
        different.append(f"one more dvc repro runs {again[0]} again")
    different += [f"{path}: left behind" for path in killed.glob("work/*/*")]
    print("\n".join(different) or f"equal: {summary(expected)}")
    sys.exit(bool(different))


def summary(same: dict[str, Any]) -> str:
    """How much was compared."""
    runs = [name for name in same if name.startswith("mlflow") and name.endswith(": runs")]
    curves = [points for points in same.values() if isinstance(points, list)]
    files = Counter(name.split("/")[0] for name in same if not name.startswith("mlflow"))
    parts = [f"{number} files of {folder}/" for folder, number in sorted(files.items())]
    return f"{', '.join(parts)}; {len(runs)} MLflow runs with {sum(map(len, curves))} points of {len(curves)} metrics"


if __name__ == "__main__":
    main()
