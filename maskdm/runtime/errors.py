"""The one exception that bad input raises, and how a command shows it: one line, exit code 2.

And the one that is no error: what ends a training on purpose.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class MaskDMError(Exception):
    """Bad input or a broken environment. The message is one line: what is wrong, where, what is allowed."""


class DivergedError(MaskDMError):
    """The loss of a training is not finite: its settings are at fault."""


class StoppedEarly(Exception):  # noqa: N818 - no error
    """Whoever watches a training has seen enough of it: it ends here, on purpose."""


@contextmanager
def exit_with_one_line() -> Iterator[None]:
    """Turn a `MaskDMError` into one line on stderr and exit code 2; Ctrl-C into exit code 130."""
    try:
        yield
    except MaskDMError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {str(interrupt) or 'the same command goes on from here'}", file=sys.stderr)
        raise SystemExit(130) from None
