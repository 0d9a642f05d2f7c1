"""Text from outside, as a terminal may show it."""

import reprlib
from typing import Any

LONGEST = 1000  # characters of a message
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 200, 200


def printable(text: str) -> str:
    """A name may hold line breaks, bytes that are no text, or a terminal's commands: they are shown as Python does."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """A message that quotes what was given: all on one line, and of one that is too long the beginning and the end."""
    line = printable(text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST * 2 // 3]} ... {line[-LONGEST // 3 :]}"


def short(value: Any) -> str:
    """A value as Python shows it, or the beginning of one that is long or deep."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write it in decimals
        return "a number of thousands of digits"
