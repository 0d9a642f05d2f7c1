"""The schema of the parts of `study/params.yaml`: comparisons that ask one question each."""

from typing import Literal, Self

from pydantic import RootModel, model_validator

from maskdm.config.comparison import Comparison
from maskdm.config.networks import Model
from maskdm.config.params import Params, Sampling
from maskdm.config.reading import validated
from maskdm.config.schema import Name

Page = Literal["study", "methods"]  # of the reports
OTHERS = ("recipe", "model", "sampling")  # keys of `params.yaml` that a part may have
DEFAULT: Literal["default"] = "default"  # the name of the comparison of `params.yaml`


class Part(Comparison):
    """One question. Everything that a part does not name is that of `params.yaml`."""

    question: str  # as a heading of the report
    paper: str  # what the paper says to it, in a sentence
    recipe: Name | None = None  # optional: another recipe
    model: Model | None = None  # optional: another network
    sampling: Sampling | None = None  # optional: another sampler, as some recipes need
    page: Page = "study"  # optional: which report answers it
    series: Name | None = None  # optional: parts of a series differ in their compute alone

    def params(self, params: Params) -> Params:
        """The settings `params` with this part's comparison.

        Raises:
            MaskDMError: an arm does not fit the settings.
        """
        own = self.model_dump(include=set(Comparison.model_fields))
        own |= {key: found for key, found in self.model_dump(include=set(OTHERS)).items() if found is not None}
        return validated(Params, params.model_dump() | own, where=f"part {self.question!r}")


class Parts(RootModel[dict[Name, Part]]):
    """All parts, by name."""

    @model_validator(mode="after")
    def _own_names(self) -> Self:
        if DEFAULT in self.root:
            raise ValueError(f"{DEFAULT}: that is the comparison of params.yaml; allowed: another name")
        return self
