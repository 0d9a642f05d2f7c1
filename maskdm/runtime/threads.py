"""How many threads may compute, and how they wait for each other."""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
SPINS = 1000  # about as fast as spinning on an idle machine, and as sleeping on a busy one


def wait_briefly() -> None:
    """Let OpenMP's threads spin for a moment while they wait for each other, then sleep, unless the user says how.

    By default they spin on. If another program has the core of the one that they wait for, they spin until that one
    has it back, and training is up to a hundred times slower (reports/performance.md, "Threads"). OpenMP (GNU's, which
    torch brings on Linux) reads the variable when torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def count_cores(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: those of its affinity, or fewer if a container's quota is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas(cgroups, own))]))


def wanted_threads() -> int:
    """Those of `OMP_NUM_THREADS`; of a list, one for each level of nesting, the first. Without a number all cores."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else count_cores()


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """The CPU time a second of this process's control group and those above it, in cores, where it is limited."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # no Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for folder in (cgroups, cgroups / "cpu", cgroups / "cpu,cpuacct"):  # version 2, and 1 by its two names
            place = Path(path.lstrip("/"))
            for group in (place, *place.parents):
                yield from _quota(folder / group)


def _quota(group: Path) -> Iterator[float]:
    try:
        quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        try:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        except OSError:
            return
    if quota != "max" and int(quota) > 0:
        yield int(quota) / int(period)
