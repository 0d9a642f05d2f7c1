"""The schema of `study/params.yaml`: comparisons that ask one question each, tunings before them, their data sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from maskdm.config.comparison import Arm, Comparison
from maskdm.config.networks import Model
from maskdm.config.params import Data, Evaluation, Params, Sampling
from maskdm.config.reading import read_yaml, validated
from maskdm.config.schema import Name, Positive, Schema
from maskdm.config.tuning import Tuned
from maskdm.runtime.paths import OWN

Page = Literal["study", "methods", "methods-half"]  # of the reports
OTHERS = ("recipe", "model", "sampling")  # keys of `params.yaml` that a part may have
DEFAULT: Literal["default"] = "default"  # the name of the comparison of `params.yaml`


class Part(Comparison):
    """One question. Everything that a part does not name is that of `params.yaml`."""

    question: str  # as a heading of the report
    paper: str  # what the paper says to it, in a sentence
    recipe: Name | None = None  # optional: another recipe
    set: Name | None = None  # optional, in `set_parts`: another data set, one of `sets`
    model: Model | None = None  # optional: another network
    sampling: Sampling | None = None  # optional: another sampler, as some recipes need
    page: Page = "study"  # optional: which report answers it
    series: Name | None = None  # optional: parts of a series differ in their compute alone


class DataSet(Schema):
    """A data set beside that of `params.yaml`."""

    data: Data
    reference: Positive | None = None  # optional: training images that samples are compared with, if it has fewer
    others: dict[Name, Data] = Field(default_factory=dict)  # optional: what phases may see in place of `data`


class Study(Schema):
    """What is asked beside the comparison of `params.yaml`."""

    sets: dict[Name, DataSet] = Field(default_factory=dict)  # optional: by the folder of `data/sets/` that holds them
    parts: dict[Name, Part]  # on the data set of `params.yaml`
    set_parts: dict[Name, Part] = Field(default_factory=dict)  # optional: on others, which not everybody has
    tunings: dict[Name, Tuned] = Field(default_factory=dict)  # optional: of arms, on the data set of `params.yaml`
    set_tunings: dict[Name, Tuned] = Field(default_factory=dict)  # optional: the same on others

    @property
    def all_parts(self) -> dict[str, Part]:
        """The parts on any data set, by name."""
        return self.parts | self.set_parts

    @property
    def all_tunings(self) -> dict[str, Tuned]:
        """The tunings on any data set, by name."""
        return self.tunings | self.set_tunings

    @model_validator(mode="after")
    def _others_have_another_name(self) -> Self:
        for name, data_set in self.sets.items():
            if OWN in data_set.others:
                raise ValueError(f"sets.{name}.others.{OWN}: that is its data; allowed: another name")
        return self

    def evaluation(self, data_set: str, params: Params) -> Evaluation:
        """The evaluation of `params` with as many real images as a data set has."""
        own = self.sets[data_set].reference
        return params.evaluation if own is None else params.evaluation.model_copy(update={"reference": own})

    def params(self, name: str, params: Params) -> Params:
        """The settings `params` with the comparison, and whatever else it names, of the part `name`.

        Raises:
            MaskDMError: an arm does not fit the settings.
        """
        part = self.all_parts[name]
        own = part.model_dump(include=set(Comparison.model_fields))
        own |= {key: found for key, found in part.model_dump(include=set(OTHERS)).items() if found is not None}
        if part.set is not None:
            own |= {"data": self.sets[part.set].data.model_dump(), "evaluation": self.evaluation(part.set, params)}
        return validated(Params, params.model_dump() | own, where=f"part {name}")

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if DEFAULT in self.all_parts:
            raise ValueError(f"parts.{DEFAULT}: that is the comparison of params.yaml; allowed: another name")
        self._check_sets("parts", self.parts, self.set_parts)
        self._check_sets("tunings", self.tunings, self.set_tunings)
        for name, part in self.all_parts.items():
            for arm, phases in part.arms.items():
                _check_phases(f"{name}.arms.{arm}", phases, self._others(part.set))
        for name, tuned in self.all_tunings.items():
            for arm, tuning in tuned.arms.items():
                _check_phases(f"{name}.arms.{arm}.arm", tuning.arm, self._others(tuned.set))
        return self

    def _others(self, data_set: str | None) -> tuple[str, ...]:
        """The sets that phases may see beside a data set of the study."""
        return tuple(self.sets[data_set].others) if data_set else ()

    def _check_sets(self, key: str, plain: Mapping[str, Part | Tuned], on_sets: Mapping[str, Part | Tuned]) -> None:
        if twice := set(plain) & set(on_sets):
            raise ValueError(f"set_{key}.{min(twice)}: {key} has one of that name; allowed: another name")
        for name, found in plain.items():
            if found.set is not None:
                raise ValueError(f"{key}.{name}.set={found.set}; allowed: none (what has a set stands in set_{key})")
        allowed = ", ".join(self.sets) or "a name in sets"
        for name, found in on_sets.items():
            if found.set not in self.sets:
                raise ValueError(f"set_{key}.{name}.set={found.set}; allowed: {allowed}")


def _check_phases(where: str, phases: Arm, others: tuple[str, ...]) -> None:
    for place, phase in enumerate(phases):
        if phase.set is not None and phase.set not in others:
            allowed = ", ".join(others) or "none, its data set has no others"
            raise ValueError(f"{where}.{place}.set={phase.set}; allowed: {allowed}")


def training_command(comparison: str) -> str:
    """What trains a comparison: the part of that name, on whichever data set it is."""
    return "dvc repro" if comparison == DEFAULT else f"python -m pipeline.study {comparison}"


def load_study(path: Path) -> Study:
    """Read and check the parts, tunings and data sets of a `study/params.yaml`; its other keys are for others to read.

    Raises:
        MaskDMError: the file is missing or is not YAML, or what it holds breaks the schema.
    """
    content = read_yaml(path)
    return validated(Study, {key: content[key] for key in Study.model_fields if key in content}, str(path))
