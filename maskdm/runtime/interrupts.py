"""Ctrl-C and SIGTERM as a request to stop at the next whole step, so that the state on disk is whole."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

OF_TORCHRUN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # which it handles


@contextmanager
def ctrl_c_is_ours() -> Iterator[None]:
    """Processes that are started in the `with` block leave Ctrl-C to this one, from their first moment on.

    Else one that is still loading the libraries would end with a traceback of its own.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """What is called in the `with` block may handle signals in its own way, but not longer: torchrun leaves handlers.

    They raise: who is ended just after torchrun would say so in a traceback.
    """
    before = {number: signal.getsignal(number) for number in OF_TORCHRUN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """Within the `with` block, the first Ctrl-C or SIGTERM only sets `.requested`; a second one stops at once.

    Only in the main thread, the one that Python hands signals to.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
