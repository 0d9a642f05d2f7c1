"""What all settings have in common: frozen blocks that take no unknown, missing or mistyped key."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]  # what DVC accepts in `stage@name`


class Schema(BaseModel):
    """A frozen block of settings: an unknown key, a missing key or a wrong type is an error.

    No key may be called `size` or `nfiles`: DVC leaves keys of these names out of its run cache's hash, so that a
    stage with a changed one would be restored from the cache instead of run again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


AnySchema = TypeVar("AnySchema", bound=BaseModel)
