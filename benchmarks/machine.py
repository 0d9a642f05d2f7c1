"""How fast this machine is right now, and timings that its drift in speed does not bias."""

from collections.abc import Callable, Mapping

import torch

from maskdm.step_time import timed_round

SIDE = 1024  # of the multiplied matrices: 4 MB each
REPEATS = 20


def matmul_gflops() -> float:
    """Rate of a float32 matrix product in GFLOP/s, the best of some repeats, with the current number of threads.

    The yardstick beside every timing: a rate of images per second means little on a machine of unknown speed.
    """
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randn(SIDE, SIDE, generator=random) for _ in range(2))
    seconds = interleaved({"matmul": lambda: torch.mm(first, second)}, REPEATS)["matmul"]
    return float(2 * SIDE**3 / min(seconds) / 1e9)


def interleaved(cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call of every case, `rounds` a case, after one call each to warm up.

    The cases take turns, so that a machine that slows down slows them alike: compare them by the ratio of two cases
    within a round, not by figures of two runs.
    """
    for run in cases.values():
        run()
    taken = [timed_round(cases) for _ in range(rounds)]
    return {name: [seconds[name] for seconds in taken] for name in cases}
