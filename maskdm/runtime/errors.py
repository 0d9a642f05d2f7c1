"""The one exception that bad input raises, and how a command shows it and the system's refusals: in one line.

And the one that is no error: what ends a training on purpose.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

from maskdm.runtime.text import one_line

GOES_ON = "the same command goes on from here"
NO_MEMORY = ("can't allocate memory", "out of memory")  # what PyTorch says on a CPU and on a GPU
CLOSED_PIPE = 141  # 128 + SIGPIPE: what a shell reports of other commands


class MaskDMError(Exception):
    """Bad input or a broken environment. The message is one line: what is wrong, where, what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class DivergedError(MaskDMError):
    """The loss of a training is not finite: its settings are at fault."""


class StoppedEarly(Exception):  # noqa: N818 - no error
    """Whoever watches a training has seen enough of it: it ends here, on purpose."""


@contextmanager
def exit_with_one_line() -> Iterator[None]:
    """Turn what is no fault of the code into one line on stderr and an exit code.

    2: a `MaskDMError`, or the system's refusal where nobody nearer had more to say: a full disk, too little memory, a
    folder that may not be read or written. 130: Ctrl-C. 141: the reader of the output has gone
    (`maskdm compare a b | head -1`).
    """
    try:
        yield
        sys.stdout.flush()  # here: at Python's end it would be too late for a line
    except MaskDMError as error:
        _end(f"error: {error}", 2)
    except KeyboardInterrupt as interrupt:
        _end(f"interrupted: {str(interrupt) or GOES_ON}", 130)
    except BrokenPipeError:
        _end("error: the reader of the output has gone; not all was written", CLOSED_PIPE)
    except (MemoryError, RuntimeError) as error:
        said = str(error).partition("\n")[0]
        if not isinstance(error, MemoryError) and not any(words in said for words in NO_MEMORY):
            raise
        _end(one_line(f"error: too little memory{': ' if said else ''}{said}; allowed: what needs less of it"), 2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _end(one_line(f"error: {place}{error.strerror or error}"), 2)


def one_line_interrupts() -> None:
    """Let Ctrl-C end in one line also while the libraries load, before a command is in `exit_with_one_line`."""
    shown = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(f"interrupted: {GOES_ON}", file=sys.stderr)
        else:
            shown(kind, error, traceback)

    sys.excepthook = show


def _end(line: str, status: int) -> NoReturn:
    """Say why, and exit."""
    print(line, file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again at its end, and say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(status) from None
