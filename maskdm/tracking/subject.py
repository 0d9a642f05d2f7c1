"""What a run is about: how it is called, what it is found by, and which run it lies under."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskdm.tracking.records import Machine, Record

PATHS = {"data.root", "evaluation.weights"}  # parameters that differ between machines: the records have them
SOURCES = {
    "default": "dvc.yaml:evaluate@{folder}",  # with which `dvc repro` trains as well
    "train": "maskdm train {folder}",
    "study": "python -m pipeline.study {folder}",
    "search": "dvc.yaml:search",
    "large_search": "study/dvc.yaml:large_search",
    "tuning": "python -m pipeline.tune {folder}",
}


@dataclass(frozen=True)
class Subject:
    """What one run is about."""

    record: Record  # its history and summary are not read
    git: dict[str, Any]  # of `records.git_state`
    dvc: dict[str, Any]  # of `records.dvc_state`

    @classmethod
    def of(cls, record: Record, machine: Machine | None) -> "Subject":
        """What is known of a finished trial."""
        return cls(record, machine.git, machine.dvc) if machine else cls(record, {}, {})

    @property
    def source(self) -> str:
        """What makes it: a DVC stage, as `dvc repro` takes it, or a command."""
        return SOURCES[self.record.stage].format(folder=self._folder)

    @property
    def run_id(self) -> str:
        """What tells this run from all others."""
        return f"{self.record.stage}@{self.record.key}:{self.record.identity}"

    @property
    def name(self) -> str:
        """For people: `crops, seed 2`, `share: share25, seed 3`, `search: trial 12`."""
        if self.is_attempt:
            return f"{self._title}: trial {int(Path(self.record.key).name.rpartition('-')[2])}"
        return f"{self.parent_name}, seed {self.record.params['seed']}"

    @property
    def parent_name(self) -> str:
        """For people: `crops`, `share: share25`, `search: confirm scratch`, `search: best trial`."""
        if self.is_attempt:
            return f"{self._title}: best trial"
        confirms = "confirm " if self.record.stage in {"search", "large_search"} else ""
        return f"{self._title}: {confirms}{self.record.arm}" if self._title else self.record.arm

    @property
    def parent(self) -> dict[str, str]:
        """Tags that find the run which this one is nested under: the arm's, or that of all trials of a search."""
        comparison = self._folder if self.record.stage == "study" else self.record.stage
        role = "search" if self.is_attempt else "arm"
        shared = digest([self.shared_params, self.record.data["sha256"]])  # other settings are another arm
        tags = {"stage": self.record.stage, "comparison": comparison, "role": role, "arm": self.record.arm}
        tags |= {"params_hash": shared, "run_id": ":".join([*tags.values(), shared])}
        return {f"maskdm.{name}": value for name, value in tags.items()}

    @property
    def is_attempt(self) -> bool:
        """Whether it is one of the many trials of a search, which differ in more than the seed."""
        return self.record.stage == "tuning" or (
            self.record.stage in {"search", "large_search"} and self._folder == "trials"
        )

    @property
    def params(self) -> dict[str, Any]:
        """What is worth comparing."""
        return {name: value for name, value in self.record.params.items() if name not in PATHS}

    @property
    def shared_params(self) -> dict[str, Any]:
        """Those that all trials below one run have in common."""
        return {} if self.is_attempt else {name: value for name, value in self.params.items() if name != "seed"}

    @property
    def _folder(self) -> str:
        return self.record.key.rpartition("/")[0]

    @property
    def _title(self) -> str:
        """Of the comparison; that of `params.yaml` needs none."""
        titles = {"default": "", "study": self._folder, "tuning": f"tuning {self._folder}, {self.record.arm}"}
        return titles.get(self.record.stage, self.record.stage.replace("_", " "))


def digest(content: Any) -> str:
    """16 hex digits that change when the content (JSON-like) changes."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
