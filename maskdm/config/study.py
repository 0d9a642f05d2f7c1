"""The schema of the parts of `study/params.yaml`: comparisons that ask one question each."""

from typing import Literal, Self

from pydantic import RootModel, model_validator

from maskdm.config.comparison import Comparison
from maskdm.config.params import Params
from maskdm.config.reading import validated
from maskdm.config.schema import Name

DEFAULT: Literal["default"] = "default"  # the name of the comparison of `params.yaml`


class Part(Comparison):
    """One question. Everything but the comparison is that of `params.yaml`."""

    question: str  # as a heading of the report
    paper: str  # what the paper says to it, in a sentence

    def params(self, params: Params) -> Params:
        """The settings `params` with this part's comparison.

        Raises:
            MaskDMError: an arm does not fit the settings.
        """
        own = self.model_dump(include=set(Comparison.model_fields))
        return validated(Params, params.model_dump() | own, where=f"part {self.question!r}")


class Parts(RootModel[dict[Name, Part]]):
    """All parts, by name."""

    @model_validator(mode="after")
    def _own_names(self) -> Self:
        if DEFAULT in self.root:
            raise ValueError(f"{DEFAULT}: that is the comparison of params.yaml; allowed: another name")
        return self
