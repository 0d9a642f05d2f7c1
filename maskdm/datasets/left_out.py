"""What a data set holds and training does not see, by name and reason: nothing is left out without a word."""

import sys
from typing import TypedDict

from tqdm import tqdm

from maskdm.runtime.text import printable

UNREADABLE = "unreadable"  # a damaged image; a file or folder that may not be read, is gone, or is a pipe, say
SECOND_NAMES = "second names"  # of a file or folder that is read under another name
NOT_IMAGES = "not images"  # by their suffix
HIDDEN = "hidden"  # what file managers leave behind
COPIES = "copies of held-out images"  # the same pixels: seen in training, the image would not be held out
FILE = "left_out.json"  # beside the prepared array: all names by reason; there is none if nothing was left out
FIRST = 10  # names of each reason that `dataset.json` holds


class Summary(TypedDict):
    """How many names there are, and the first of them."""

    count: int
    first: list[str]


class LeftOut:
    """Names by reason. A folder's ends in `/`, and counts as one: what is in it is not known."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._names.values()))

    def count(self, reason: str) -> int:
        """How many names have this reason."""
        return len(self._names.get(reason, []))

    def add(self, reason: str, name: str, why: str = "") -> None:
        """Note a name; print it if there is more to say of it, and it is one of the first."""
        names = self._names.setdefault(reason, [])
        names.append(name)
        if why and len(names) <= FIRST:
            tqdm.write(f"left out: {printable(name)}: {why}", file=sys.stderr)

    def extend(self, names: dict[str, list[str]]) -> None:
        """Note what another one had as its `names`."""
        for reason, found in names.items():
            self._names.setdefault(reason, []).extend(found)

    def names(self) -> dict[str, list[str]]:
        """All names by reason, sorted."""
        return {reason: sorted(names) for reason, names in sorted(self._names.items())}

    def summary(self) -> dict[str, Summary]:
        """How many names each reason has, and the first of them."""
        return {reason: {"count": len(names), "first": names[:FIRST]} for reason, names in self.names().items()}


def in_words(summary: dict[str, Summary]) -> str:
    """A line such as `hidden: 1 (.cache/), unreadable: 7 (a.png, b.png, c.png, ...)`."""
    return ", ".join(
        f"{reason}: {part['count']} ({', '.join(map(printable, part['first'][:3]))}{', ...' * (part['count'] > 3)})"
        for reason, part in summary.items()
    )
