"""Processes that work for another one: they end with it, so that its next run finds nobody at work."""

import os
import signal
import threading
import time
from multiprocessing import parent_process

POLL_SECONDS = 0.5


def end_with_parent() -> None:
    """Let this process die with the one that started it."""
    _send_when_parent_ends(signal.SIGKILL)


def stop_with_parent() -> None:
    """Let the end of the process that started this one be a SIGTERM to it: what handles that saves its state."""
    _send_when_parent_ends(signal.SIGTERM)


def _send_when_parent_ends(number: signal.Signals) -> None:
    started_by, parent = parent_process(), os.getppid()

    def wait() -> None:
        if started_by is not None:
            started_by.join()
        while started_by is None and os.getppid() == parent:  # of another kind than `multiprocessing` starts
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()
