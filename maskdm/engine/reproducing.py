"""A row of a published table, and one more seed of it."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from maskdm.config.study import DEFAULT, load_study, training_command
from maskdm.engine.project import Project
from maskdm.engine.single import train_alone
from maskdm.engine.trial import trial_identity
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import ROOT, STUDY
from maskdm.runtime.processes import ALONE
from maskdm.tracking.records import Machine, Record, Stage, read_record


@dataclass(frozen=True)
class PublishedRow:
    """An arm of a comparison whose seeds are recorded."""

    name: str  # `<comparison>/<arm>`
    project: Project  # with the settings of its comparison
    records: tuple[Record, ...]  # one a seed

    @classmethod
    def open(cls, name: str) -> "PublishedRow":
        """Find the row `<arm>` of `params.yaml`, or `<part>/<arm>` of the study.

        Raises:
            MaskDMError: there is none, a seed of it is not recorded, or what is recorded is not what the settings and
                the data would give today.
        """
        project = Project.open(ALONE)
        comparison, _, arm = name.rpartition("/")
        comparison = comparison or DEFAULT
        if comparison != DEFAULT:
            study = load_study(STUDY)
            if comparison not in study.all_parts:
                allowed = ", ".join((DEFAULT, *study.all_parts))
                raise MaskDMError(f"row {name}: no part {comparison}; allowed: {allowed}")
            project = project.of_part(study, comparison)
        if arm not in project.params.arms:
            allowed = ", ".join(project.params.arms)
            raise MaskDMError(f"row {name}: no arm {arm or '(empty)'} in {comparison}; allowed: {allowed}")
        records = tuple(_recorded(project, comparison, arm, seed) for seed in project.params.seeds)
        return cls(f"{comparison}/{arm}", project, records)

    def train(self, seed: int | None) -> tuple[Path, Record]:
        """Train the arm with one more seed, and judge it; None: the one after the row's last.

        Raises:
            MaskDMError: the seed is one of the row's, or the training fails.
        """
        known = [int(record.params["seed"]) for record in self.records]
        seed = max(known) + 1 if seed is None else seed
        if seed in known:
            raise MaskDMError(
                f"seed {seed}: one of the row's own; allowed: any other than {', '.join(map(str, known))}"
            )
        comparison, arm = self.name.split("/")
        name = arm if comparison == DEFAULT else f"{comparison}-{arm}"
        return train_alone(self.project.trial(arm, seed), judged=True, name=name)


def _recorded(project: Project, comparison: str, arm: str, seed: int) -> Record:
    """The record of a trial; it must be of today's settings and data. Another device is none of it."""
    stage: Stage = "default" if comparison == DEFAULT else "study"
    key = f"{arm}/{seed}" if comparison == DEFAULT else f"{comparison}/{arm}-{seed}"
    command = f"dvc repro evaluate@{arm}" if comparison == DEFAULT else training_command(comparison)
    found = read_record(ROOT, stage, key)
    if found is None:
        raise MaskDMError(f"records/{stage}: no record of {key}; `{command}` makes it")
    record, machine = found
    require_today(record, machine, project.trial(arm, seed), True, command)
    return record


def require_today(record: Record, machine: Machine | None, trial: Project, judged: bool, command: str) -> None:
    """Refuse a record that the settings and the data would not give today. Another kind of device is none of it.

    Args:
        record: what is recorded.
        machine: where it came about; None: not known.
        trial: what it should be of.
        judged: whether it holds measures of samples.
        command: what makes it anew.

    Raises:
        MaskDMError: it is of other settings, data or numerics.
    """
    if machine:
        device = "cpu" if machine.hardware["device"] == "cpu" else "cuda"
        trial = replace(trial, device=torch.device(device))
    if record.identity != trial_identity(trial, judged):
        raise MaskDMError(
            f"records/{record.stage}: {record.key} is of other settings, data or numerics than today's; `{command}` "
            "makes it anew"
        )
