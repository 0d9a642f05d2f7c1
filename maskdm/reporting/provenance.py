"""Where every number of a page comes from: the file, the commit and the machine that made it, the command."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from maskdm.config.study import DEFAULT, training_command
from maskdm.reporting.analysed import Analysed
from maskdm.reporting.analysis import Records, find_trial, ordered_arms
from maskdm.reporting.page import NOTHING
from maskdm.reporting.report import Default
from maskdm.tracking.records import Machine


@dataclass(frozen=True)
class Source:
    """What some numbers were made by."""

    numbers: str  # Markdown
    file: str  # that holds them
    seeds: str
    commits: str
    machine: str  # and when
    command: str  # that makes them again


def sources(opened: Default, parts: Sequence[Analysed], study: Records, search: Records) -> list[Source]:
    """All of a page's.

    Args:
        opened: the default comparison.
        parts: of the study, those that the page shows.
        study: their records, and others.
        search: the records of the search; may be empty.
    """
    params, times, reference = opened.found.params, opened.times, opened.reference
    found = [
        _source(
            f"Loss, distance and images of `{arm}`",
            f"records/{DEFAULT}/{arm}.jsonl",
            params.seeds,
            [find_trial(DEFAULT, arm, seed, opened.records)[1] for seed in params.seeds],
            f"dvc repro evaluate@{arm}",
        )
        for arm in ordered_arms(params)
    ]
    found += [
        Source(
            "All seconds",
            "records/step_time.json",
            NOTHING,
            _commit(times.git),
            f"{_hardware(times.hardware)}; {times.started_at[:10]}",
            "dvc repro step_time",
        ),
        Source(
            f"The floor; extractor {reference['extractor']} {reference.get('extractor_sha256', '')[:12]}".strip(),
            "records/reference.json",
            NOTHING,
            NOTHING,
            NOTHING,
            "dvc repro reference",
        ),
    ]
    for part in parts:
        trials = [(arm, seed) for arm in part.params.arms for seed in part.params.seeds]
        machines = [find_trial(part.name, arm, seed, study)[1] for arm, seed in trials]
        path, title = f"records/study/{part.name}.jsonl", f"Budgets: part `{part.name}`"
        found.append(_source(title, path, part.params.seeds, machines, training_command(part.name)))
    if search:
        seeds = sorted({int(record.params["seed"]) for record, _ in search})
        machines = [machine for _, machine in search]
        found.append(_source("The search", "records/search/", seeds, machines, "dvc repro search_report"))
    return found


def _source(numbers: str, file: str, seeds: Sequence[int], machines: Sequence[Machine | None], command: str) -> Source:
    known = [machine for machine in machines if machine]
    commits = _joined(_commit(machine.git) for machine in known)
    made = [_joined(_hardware(machine.hardware) for machine in known), _joined(m.started_at[:10] for m in known)]
    places = "; ".join(text for text in made if text != NOTHING) or NOTHING
    return Source(numbers, file, ", ".join(map(str, seeds)), commits, places, command)


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(sorted(set(texts) - {NOTHING})) or NOTHING


def _commit(git: dict[str, Any]) -> str:
    """The commit, and whether the code had been changed since."""
    if not git.get("commit"):
        return NOTHING
    return f"{git['commit'][:7]}{' with changes' if git.get('dirty') else ''}"


def _hardware(hardware: dict[str, Any]) -> str:
    if not hardware:
        return NOTHING
    on = hardware["device"]
    return f"{hardware['cpu']}, {hardware['cores']} cores" if on == "cpu" else str(on)
