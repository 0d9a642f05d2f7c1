"""How often progress bars are drawn: on a terminal as a movie, in a log file as a line now and then."""

import sys


def bar_interval() -> float:
    """Seconds between two drawings: tqdm's `mininterval`."""
    return 0.2 if sys.stderr.isatty() else 20.0
