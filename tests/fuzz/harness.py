"""Hostile inputs by the thousand: how they are made, and what an answer to one may be.

`make test` tries a few of each kind. `pytest tests/fuzz -m slow -s` tries thousands, and says how many and how they
were answered. Inputs are the same in every run.
"""

import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from maskdm.runtime.errors import MaskDMError

FEW = 8  # inputs of a test in `make test`
LONGEST = 1100  # characters of a line that a user may have to read
SECONDS = 120  # an answer takes milliseconds; the machine may be busy

T = TypeVar("T")

# What stands for a scalar in settings, records and configs.
SCALARS: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")),
    *("", " ", "a", "0", "1e9", "nan", "null", "a\nb", "\x1b[31mred\x07", "\udcff", "\0", "é\u2028\u202e", "x" * 5000),
    *("../../../etc/passwd", "/dev/zero", "$HOME", "${NONE}", "~nobody-at-all", "{0.__class__}", "%s%n", "${x:-`id`}"),
    *("__import__('os').system('id')", "!!python/object/apply:os.system ['id']", "<script>alert(1)</script>"),
    *([], {}, [[]], [None], {"": None}, {"name": None}, {"name": "x"}, [1, 2, 3], {"a\nb": 1}),
]


def amounts(many: int, few: int = FEW) -> Any:
    """Runs a test with a few inputs, and as a slow one with many."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])


def randoms() -> st.SearchStrategy[Random]:
    """Generators for mutations; Hypothesis shows the seed of one that led to a fault."""
    return st.randoms(use_true_random=True)


def fuzz(examples: int, what: str, inputs: st.SearchStrategy[T], check: Callable[[T], str]) -> None:
    """Check so many inputs; `check` says how one was answered, and raises if that is not as it should be.

    Raises:
        AssertionError: some were not; every different place in the code is shown once.
    """
    answers, faults, started = Counter[str](), dict[str, str](), time.perf_counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(given: T) -> None:
        try:
            with in_time(), without_warnings():
                answers[check(given)] += 1
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            last = "".join(traceback.format_exception(error)[-6:])
            faults.setdefault(f"{place.filename}:{place.lineno}", f"{given!r:.500}\n{last:.2000}")
            answers["FAULT"] += 1

    run()
    said = ", ".join(f"{count} {answer}" for answer, count in answers.most_common())
    print(f"\nfuzz: {what}: {answers.total()} inputs: {said}; {time.perf_counter() - started:.0f} s")
    print("\n".join(f"fuzz: fault: {place}: {shown.splitlines()[-1]:.200}" for place, shown in faults.items()))
    assert not faults, "\n\n".join(f"=== {place}\n{shown}" for place, shown in faults.items())


@contextmanager
def in_time() -> Iterator[None]:
    """Fail what takes too long."""

    def late(*_: object) -> None:
        raise AssertionError(f"no answer after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Fail what Python would print beside the one line: a warning, of a library's file and line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    unseen = (DeprecationWarning, PendingDeprecationWarning, ResourceWarning)  # Python does not show them
    said = [f"{one.category.__name__}: {one.message}" for one in caught if not issubclass(one.category, unseen)]
    assert not said, said[0]


def answer_of(call: Callable[[], object]) -> str:
    """Whether `call` takes its input or refuses it, in one line; the system's refusals become one in every command."""
    try:
        call()
    except MaskDMError as error:
        require_line(str(error))
        return "refused"
    except OSError as error:
        if not error.strerror:
            raise
        return "refused by the system"
    return "taken"


def require_line(text: str) -> None:
    """Fail what is no line that a terminal may show."""
    assert text.strip()
    assert "validation error" not in text, text
    assert text.isprintable(), repr(text)
    assert len(text) <= LONGEST, len(text)


def everything(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with the content of regular files."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}


# --- mutations ----------------------------------------------------------------------------------------------


def changed_bytes(content: bytes, random: Random) -> bytes:
    """Bits flipped; stretches cut, doubled, zeroed, swapped or filled at random."""
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        if not content:
            return random.randbytes(random.randrange(1, 64))
        start = random.randrange(len(content))
        stop = min(len(content), start + random.choice((1, 1, 2, 4, 8, 64, 512, len(content))))
        part = content[start:stop]
        match random.randrange(7):
            case 0:
                part = bytes([part[0] ^ 1 << random.randrange(8)]) + part[1:]
            case 1:
                part = b""
            case 2:
                part *= random.choice((2, 2, 3, 50))
            case 3:
                part = bytes(len(part))
            case 4:
                part = random.randbytes(len(part))
            case 5:
                part = b"\xff" * len(part)
            case 6:  # a number, as formats hold them
                value = random.choice((0, 1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
                number = value.to_bytes(4, random.choice(("big", "little")))
                part = number[: len(part)] + part[4:]
        content = (content[:start] + part + content[stop:])[: 1 << 20]
    return content


def changed_tree(tree: Any, random: Random, scalars: list[Any] = SCALARS) -> Any:
    """A copy of nested containers of which some nodes are replaced, taken out, doubled or put elsewhere."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        places = list(_places(tree))
        path = random.choice(places)
        match random.randrange(8):
            case 0:
                tree = _with(tree, path, None, drop=True)
            case 1:
                tree = _with(tree, path, _at(tree, random.choice(places)))
            case 2:  # another key
                key = random.choice(["", "a\nb", "\x1b[2J", "name", "x" * 3000, 0, None, 1.5, "\udcff"])
                tree = _with(tree, (*path[:-1], key) if isinstance(key, str) or path else path, random.choice(scalars))
            case 3:
                value = _at(tree, path)
                scaled = value * random.choice((-1, 1000, 10**12)) if _is_number(value) else [value] * 3
                tree = _with(tree, path, scaled)
            case 4 if random.random() < 0.2:
                tree = _with(tree, path, _nested(random.choice((50, 5000))))
            case _:
                tree = _with(tree, path, random.choice(scalars))
    return tree


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


def _places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if len(path) > 40:
        return
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        yield from _places(value, (*path, key))


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _with(tree: Any, path: tuple[Any, ...], value: Any, drop: bool = False) -> Any:
    """The tree with another value at a place, or without it."""
    if not path:
        return value
    key, *rest = path
    if isinstance(tree, dict):
        copy = dict(tree)
        if drop and not rest:
            copy.pop(key, None)
        else:
            copy[key] = _with(tree.get(key), tuple(rest), value, drop)
        return copy
    if isinstance(tree, list | tuple):
        items = list(tree)
        if not isinstance(key, int) or not 0 <= key < len(items):
            return tree
        if drop and not rest:
            del items[key]
        else:
            items[key] = _with(items[key], tuple(rest), value, drop)
        return items
    return tree
