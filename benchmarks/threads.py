"""Threads that spin while they wait for each other, and threads that sleep: training idle, and beside a busy program.

python -m benchmarks.threads [--rounds 3]

Each setting trains the baseline and the first masked phase of `params.yaml` in a process of its own, one after the
other, round by round. The busy program is one endless loop for each core.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd

from maskdm.config.reading import load_params, load_recipe
from maskdm.engine.dry_run import training_step
from maskdm.runtime.device import choose_device
from maskdm.runtime.threads import count_cores
from maskdm.training.plan import PhasePlan, plan_finetune, plan_pretrain

SECONDS = 4.0  # of steps, for each kind of them
SETTINGS = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "all cores, spinning (OpenMP's default)": {"GOMP_SPINCOUNT": "300000"},
    "all cores, 10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "all cores, 1,000 spins": {"GOMP_SPINCOUNT": "1000"},
    "all cores, sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
}
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def main() -> None:
    """Print the table; as a child, images/s as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure()))
        return
    rows: dict[str, dict[str, str]] = {name: {} for name in SETTINGS}
    for condition, loops in (("idle", 0), ("busy", count_cores())):
        with busy_loops(loops):
            rates = [{name: child(setting) for name, setting in SETTINGS.items()} for _ in range(arguments.rounds)]
        for name in SETTINGS:
            for kind in rates[0][name]:
                found = [of_round[name][kind] for of_round in rates]
                rows[name][f"{kind}, {condition}"] = (
                    f"{statistics.median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})"
                )
    print(f"images/s on {count_cores()} cores: median (range) of {arguments.rounds} rounds\n")
    print(pd.DataFrame([{"threads": name, **row} for name, row in rows.items()]).to_markdown(index=False))


def child(setting: dict[str, str]) -> dict[str, float]:
    """What a process with these variables measures."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | setting
    command = [sys.executable, "-m", "benchmarks.threads", "--child"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {str(kind): float(rate) for kind, rate in json.loads(done.stdout).items()}


def measure() -> dict[str, float]:
    """Images/s of each kind of step."""
    params = load_params()
    recipe = load_recipe(params.recipe)
    masked = next(arm for arm, phases in params.arms.items() if phases[0].mask)
    plans = {
        "without a mask": plan_finetune(params, recipe, params.baseline),
        "masked": plan_pretrain(params, recipe, masked)[0],
    }
    return {kind: images_per_second(plan) for kind, plan in plans.items()}


def images_per_second(plan: PhasePlan) -> float:
    """Over the steps of `SECONDS`, of which there is one at least."""
    params = load_params()
    step = training_step(params, load_recipe(params.recipe), plan, choose_device())
    step()
    took: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        step()
        took.append(time.perf_counter() - before)
    return plan.batch_size * len(took) / sum(took)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Programs of their own that take all the time they get, ended with the `with` block."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    main()
