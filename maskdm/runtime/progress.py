"""How far work is: what a process that works for another one reports, and the one bar that shows all of them."""

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

STATUS = "MASKDM_STATUS"  # names the file in which a process reports; without it nobody asks
REPORT_SECONDS = 0.5
BAR_FORMAT = "{desc}: {percentage:3.0f}% |{bar:20}| {elapsed} gone, about {remaining} left{postfix}"


def bar_interval() -> float:
    """Seconds between two drawings: tqdm's `mininterval`."""
    return 0.2 if sys.stderr.isatty() else 20.0


@dataclass(frozen=True)
class Status:
    """What a process has done of its task."""

    flops: float  # of training, as `PhasePlan.train_flops` counts them, or their equivalent
    images: int = 0
    loss: float | None = None


class Reporter:
    """Writes a `Status` to the file that `STATUS` names, twice a second at most."""

    def __init__(self) -> None:
        self._path = Path(os.environ[STATUS]) if STATUS in os.environ else None
        self._next = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the next report would be written."""
        return self._path is not None and time.monotonic() >= self._next

    def report(self, status: Status) -> None:
        """Write it, if it is due. A report that is lost is no loss."""
        if self._path is None or not self.is_due:
            return
        self._next = time.monotonic() + REPORT_SECONDS
        with suppress(OSError):
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(asdict(status)))
            os.replace(temporary, self._path)


def read_status(path: Path) -> Status | None:
    """What was reported last; None: nothing yet."""
    with suppress(OSError, ValueError, TypeError):
        return Status(**json.loads(path.read_text()))
    return None


@dataclass(frozen=True)
class Work:
    """What there is to do, in FLOPs."""

    sizes: Sequence[float]  # of each task
    before: float = 0.0  # of what was done before, by other commands
    after: float = 0.0  # of what other commands have yet to do
    start: float = 0.0  # that each task reports before it has done anything: of the phases before


class WorkBar:
    """One bar for tasks that run side by side: how far all of the work is, and what that leaves of time.

    Args:
        desc: what is at work now.
        work: all that there is to do.
    """

    def __init__(self, desc: str, work: Work) -> None:
        self._work = work
        total = work.before + sum(work.sizes) + work.after
        self._bar: tqdm[Any] = tqdm(
            desc=desc, total=total, initial=work.before, bar_format=BAR_FORMAT, mininterval=bar_interval()
        )
        self._finished: set[int] = set()
        self._images = (time.monotonic(), 0)

    def show(self, running: dict[int, Status]) -> None:
        """Draw what the tasks in `running`, by their number, and those that have finished come to."""
        sizes = self._work.sizes
        done = sum(sizes[task] for task in self._finished)
        done += sum(min(status.flops - self._work.start, sizes[task]) for task, status in running.items())
        if postfix := self._postfix(running.values()):
            self._bar.set_postfix_str(postfix, refresh=False)
        self._bar.update(max(0.0, self._work.before + done - self._bar.n))

    def finish(self, task: int) -> None:
        """Count a task as done."""
        self._finished.add(task)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _postfix(self, running: Iterable[Status]) -> str:
        statuses = list(running)
        (before, seen), now = self._images, time.monotonic()
        images = sum(status.images for status in statuses)
        parts = []
        if images > seen and seen and now > before:
            parts.append(f"{(images - seen) / (now - before):,.0f} images/s")
        if images != seen:
            self._images = (now, images)
        if losses := [status.loss for status in statuses if status.loss is not None]:
            parts.append(f"loss {sum(losses) / len(losses):.4f}")
        return ", ".join(parts)
