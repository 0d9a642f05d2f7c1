"""A stage of `params.yaml` for all seeds of an arm: its trials side by side.

The command is the same on every machine, so that DVC does not take another number of cores or GPUs for a change.
"""

import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from maskdm.config.params import Params
from maskdm.config.reading import load_params, recipe_of
from maskdm.config.study import DEFAULT
from maskdm.engine.sharing import count_processes, count_workers, start_processes
from maskdm.engine.workers import in_a_copy, load_libraries, run_all
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import ROOT
from maskdm.runtime.progress import Work, WorkBar
from maskdm.runtime.torchrun import own_number, within_torchrun
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import fold_records


@dataclass(frozen=True)
class Task:
    """A stage of one trial."""

    stage: str
    arm: str
    seed: int
    processes: int


def run_stage(stage: str, arguments: list[str]) -> None:
    """Run a stage for every seed of the arm that the command line names, as many at a time as the machine has room for.

    Within torchrun, which starts the processes of several machines, seed after seed in those. At the end of `evaluate`
    the records of the arm become one file.

    Raises:
        MaskDMError: there is no such arm, or a setting or a file is not usable.
    """
    params = load_params(ROOT / "params.yaml")
    arm = chosen_key(arguments, params.arms)
    if within_torchrun():
        from maskdm.engine.stages import run_seeds  # here, as below: only workers need the libraries that it loads

        run_seeds(stage, arm, params.seeds)
    else:
        start_trials(params, stage, arm)
    if stage == "evaluate" and own_number("RANK") == 0:
        fold_records(ROOT, DEFAULT, arm, keep={f"{arm}/{seed}" for seed in params.seeds})
        mlflow_store.summarise(ROOT, DEFAULT)


def start_trials(params: Params, stage: str, arm: str) -> None:
    """Run a stage for every seed, each trial in a process of its own or in several."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: all trials save what they have
    load_libraries()
    processes = count_processes(len(params.seeds))
    workers = count_workers(len(params.seeds), processes)
    tasks = [Task(stage, arm, seed, processes) for seed in params.seeds]
    bar = WorkBar(f"{stage} {arm}", in_a_copy(_whole_run, (params, stage, arm)))
    for _ in run_all(run, tasks, workers, unit="trial", bar=bar, gpus=processes):
        pass


def _whole_run(of: tuple[Params, str, str]) -> Work:
    from maskdm.engine.outlook import whole_run

    params, stage, arm = of
    return whole_run(params, recipe_of(params, ROOT), stage, arm)


def run(task: Task) -> None:
    """One stage of one trial, in this process or in several that it starts."""
    from maskdm.engine.stages import run_seeds

    if task.processes == 1:
        run_seeds(task.stage, task.arm, [task.seed])
    elif status := start_processes(task.processes, "maskdm.engine.stages", [task.stage, task.arm, str(task.seed)]):
        raise SystemExit(status)


def chosen_key(arguments: Sequence[str], known: Collection[str]) -> str:
    """The one argument of a stage's command.

    Raises:
        MaskDMError: there is no such key.
    """
    if len(arguments) != 1 or arguments[0] not in known:
        raise MaskDMError(f"{' '.join(arguments) or 'no key'}: allowed: one of {', '.join(known)}")
    return arguments[0]
