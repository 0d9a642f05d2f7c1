"""Do the stages of a GPU profile run on this machine? `celeba64` on made-up images, with a small part of its budget.

python -m tests.gpu FOLDER [--train-flops 2e15] [--code CHECKOUT]

Runs prepare, reference, masks, pretrain, finetune, evaluate, step_time and report for all arms with one seed. Beside
them it trains the first masked phase and the dense one again, whole (with the code of another checkout, if one is
named) and killed in the middle, which must give the same weights bit for bit. It does so with compiled blocks, too, and
trains an arm with the recipe `tuned`. It prints a line a check, with the SHA-256 of the weights. The trainings share
the GPU, so that their times mean little.
Whole steps of every arm must meet the budget to 0.25 %: 1.5e15, 2e15 and 3e15 FLOPs do.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from ruamel.yaml import YAML

from tests.imports import PROJECT

IMAGES, HELDOUT = 3000, 600
AT_A_TIME = 6  # jobs that share the GPU: each holds 10 GB
USUAL, OFTEN = "CHECKPOINT_SECONDS = 30.0", "CHECKPOINT_SECONDS = 1.0"
LONG, ALWAYS = "LONG_PHASE = 2e17", "LONG_PHASE = 0.0"


class Checks:
    """What was found, printed as it is found."""

    def __init__(self, path: Path) -> None:
        self.path, self.found, self.began, self.lock = path, dict[str, Any](), time.monotonic(), threading.Lock()

    def __call__(self, name: str, passed: bool, **details: Any) -> None:
        with self.lock:
            self.found[name] = {"passed": bool(passed), **details}
            self.path.write_text(json.dumps(self.found, indent=1))
            said = " ".join(f"{key}={value}" for key, value in details.items())
            print(f"{time.monotonic() - self.began:6.1f} s {'ok  ' if passed else 'FAIL'} {name} {said}", flush=True)


def main() -> None:
    """Run everything; exit 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train-flops", type=float, default=2e15)
    parser.add_argument("--code", type=Path, default=PROJECT)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    whole = folder / "whole"
    make_project(whole, arguments.train_flops)
    make_images(whole / "data" / "raw" / "celeba")
    check = Checks(folder / "checks.json")
    for name in ("prepare", "reference", "masks"):
        stage(check, whole, name)
    copies = {name: folder / name for name in ("again", "killed", "compiled", "compiled-killed", "tuned")}
    for name, copy in copies.items():
        make_project(
            copy,
            arguments.train_flops * (1.5 if name == "tuned" else 1),
            code=arguments.code.resolve() if name == "again" else PROJECT,
            tuned=name == "tuned",
            often="killed" in name,
            compiled="compiled" in name,
        )
        for made in ("data/prepared", "data/reference"):
            shutil.copytree(whole / made, copy / made)
    arms = list(YAML().load(whole / "params.yaml")["arms"])
    jobs = [  # what is compared first, in case that the time does not suffice
        partial(killed, check, copies["killed"], arms[1]),
        partial(again, check, copies["again"], arms[1]),
        partial(killed, check, copies["compiled-killed"], arms[1]),
        partial(again, check, copies["compiled"], arms[1]),
        *(partial(chain, check, whole, arm) for arm in arms[:2]),
        partial(chain, check, copies["tuned"], arms[1]),
        *(partial(chain, check, whole, arm) for arm in arms[2:]),
    ]
    with ThreadPool(AT_A_TIME) as pool:
        pool.map(lambda job: job(), jobs, chunksize=1)
    for name, path in {"masked": f"pretrain/{arms[1]}/0", "dense": "finetune/scratch/0"}.items():
        of = {project.name: sha256(project / "runs" / path) for project in (whole, *copies.values())}
        check(f"the same seed gives the same weights, {name}", of["whole"] == of["again"] != "", **of)
        check(f"a killed run ends with the same weights, {name}", of["whole"] == of["killed"] != "")
        check(f"the same, compiled, {name}", of["compiled"] == of["compiled-killed"] != "")
        check(f"compiled weights are others, {name}", of["compiled"] != of["whole"])
    for name in ("step_time", "report"):
        stage(check, whole, name)
    sys.exit(not all(found["passed"] for found in check.found.values()))


def chain(check: Checks, folder: Path, arm: str) -> None:
    """Every stage of an arm."""
    for name in ("pretrain", "finetune", "evaluate"):
        stage(check, folder, name, arm)
    losses(check, folder, arm)


def losses(check: Checks, folder: Path, arm: str) -> None:
    """Did the held-out loss fall, from the first row of each phase to its last?"""
    path = folder / "records" / "default" / f"{arm}.jsonl"
    trial = json.loads(path.read_text()) if path.is_file() else {"record": {"history": []}, "machine": {}}
    rows = [row for row in trial["record"]["history"] if "heldout_loss" in row]
    about = {what: trial["machine"].get(what) for what in ("images_per_second", "peak_memory_bytes", "stage_seconds")}
    check(f"{folder.name}: a record of {arm}", bool(rows), **about)
    for phase, group in itertools.groupby(rows, key=lambda row: row["phase"]):
        own = list(group)
        ends = {kind: [round(row[kind], 4) for row in (own[0], own[-1])] for kind in ("loss", "heldout_loss")}
        fell = ends["heldout_loss"][1] < ends["heldout_loss"][0]
        check(f"{folder.name}: the loss falls, {arm}, phase {phase}", fell, ends=ends, rows=len(own))


def again(check: Checks, folder: Path, arm: str) -> None:
    """The same training once more."""
    for arguments in (("pretrain", arm), ("pretrain", "scratch"), ("finetune", "scratch")):
        stage(check, folder, *arguments)


def killed(check: Checks, folder: Path, arm: str) -> None:
    """Trains with SIGKILL in the middle, then to the end."""
    stage(check, folder, "pretrain", "scratch")
    for arguments in (("pretrain", arm), ("finetune", "scratch")):
        with (folder / "killed.log").open("a") as log:
            process = subprocess.Popen(command(*arguments), cwd=folder, env=environment(), stderr=log, stdout=log)
            deadline, seen = time.monotonic() + 150, list[Path]()
            while time.monotonic() < deadline and process.poll() is None and not seen:
                seen = list((folder / "work").glob(f"{'-'.join(arguments)}-*/*/phase0.pt"))
                time.sleep(0.01)
            time.sleep(1.5)  # some steps beyond the checkpoint
            workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGKILL)
            status = process.wait()
            psutil.wait_procs(workers, timeout=30)  # they end with it, but not at once
        saved = (
            torch.load(seen[0], weights_only=True, map_location="cpu")["step"] if seen and seen[0].exists() else None
        )
        check(f"killed in {' '.join(arguments)}", status == -signal.SIGKILL and saved is not None, saved_step=saved)
        stage(check, folder, *arguments)


def stage(check: Checks, folder: Path, *arguments: str) -> None:
    """Run one stage; what it prints goes to a log."""
    began = time.monotonic()
    done = subprocess.run(
        command(*arguments), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with (folder / "stages.log").open("a") as log:
        log.write(f"=== {' '.join(arguments)}\n{done.stdout}\n")
    said = "" if done.returncode == 0 else done.stdout[-1500:]
    warned = [line for line in done.stdout.splitlines() if "warning" in line.lower()][:3]
    name = f"{folder.name}: {' '.join(arguments)}"
    seconds = round(time.monotonic() - began, 1)
    left = sha256(folder.joinpath("runs", *arguments, "0"))
    check(name, done.returncode == 0, exit=done.returncode, s=seconds, weights=left, said=said, warned=warned)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", f"pipeline.{arguments[0]}", *arguments[1:]]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "2"}


def sha256(folder: Path) -> str:
    """Of the weights that a stage left; empty if there are none."""
    files = sorted((folder / "weights").glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16] if files else ""


def make_project(
    folder: Path,
    train_flops: float,
    code: Path = PROJECT,
    tuned: bool = False,
    often: bool = False,
    compiled: bool = False,
) -> None:
    """The project's code, with `celeba64` in small; `often`: with a checkpoint every second."""
    folder.mkdir(parents=True)
    for name in ("maskdm", "pipeline", "profiles"):
        shutil.copytree(code / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    params = YAML().load(folder / "profiles" / "celeba64.yaml")
    params["seeds"] = [0]
    params["budget"] = {"train_flops": train_flops, "snapshots": [0.5, 1.0]}
    params["heldout"] = {"images": 512, "points": 20}
    params["sampling"] |= {"num_inference_steps": 25, "batch_size": 128}
    params["evaluation"] |= {"extractor": "effnet_lite0", "input_size": 96, "samples": 128, "reference": 1500}
    params["evaluation"] |= {"kid_subsets": 20, "kid_subset_size": 100}
    if tuned:
        params["recipe"] = "tuned"
        params["sampling"] |= {"sampler": "dpm_solver", "eta": 0.0}
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    training = folder / "maskdm" / "training"
    if often:
        change(training / "loop.py", USUAL, OFTEN)
    if compiled:
        change(training / "passes.py", LONG, ALWAYS)


def change(path: Path, before: str, after: str) -> None:
    """Another number in a copy of the project's code."""
    text = path.read_text()
    assert text.count(before) == 1, f"{path}: no {before}"
    path.write_text(text.replace(before, after))


def make_images(folder: Path) -> None:
    """CelebA's files: images of 178x218 pixels, each a few smooth blobs of colour, and which of them are held out."""
    images = folder / "img_align_celeba"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:109j, -1:1:89j]
    lines = []
    for index in range(1, IMAGES + 1):
        picture = np.ones((109, 89, 3)) * random.uniform(0, 255, 3)
        for _ in range(3):
            blob = np.exp(-((x - random.uniform(-0.7, 0.7)) ** 2 + (y - random.uniform(-0.7, 0.7)) ** 2) / 0.08)[
                ..., None
            ]
            picture = picture * (1 - blob) + random.uniform(0, 255, 3) * blob
        image = Image.fromarray(picture.round().astype(np.uint8)).resize((178, 218), Image.Resampling.BICUBIC)
        image.save(images / f"{index:06d}.jpg", quality=95)
        lines.append(f"{index:06d}.jpg {0 if index <= IMAGES - HELDOUT else 1 + index % 2}")
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
