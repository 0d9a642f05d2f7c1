"""Ctrl-C and SIGTERM as a request to stop at the next whole step, so that the state on disk is whole."""

import signal
from types import FrameType
from typing import Self


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
