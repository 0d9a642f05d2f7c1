"""The recipe: what the network predicts, and how it is optimised."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from maskdm.config.objective import ObjectiveSettings, flat_settings
from maskdm.config.schema import Fraction, Schema
from maskdm.runtime.text import short


class Optimisation(Schema):
    """One phase's optimiser. Spans are shares of the schedule, so that they fit a training of any length.

    A phase has a schedule of its own, unless it goes on from the whole state of the one before (`Recipe.handover`):
    then both have one.
    """

    optimizer: Literal["adamw", "muon"]  # muon: for the matrices of the blocks; AdamW updates the rest
    lr: Annotated[float, Field(gt=0)]  # the peak
    betas: tuple[Fraction, Fraction]  # AdamW's; the first is Muon's momentum as well
    weight_decay: Annotated[float, Field(ge=0)]
    grad_clip: Annotated[float, Field(gt=0)] | None  # largest norm of the gradient; None: no clipping
    warmup: Fraction  # share of the schedule's compute in which the learning rate rises from 0
    decay: Fraction  # share of it, at its end, in which the learning rate falls to 0
    ema_horizon: Annotated[float, Field(gt=0, le=1)]  # the EMA averages over about this share of it
    hflip: Fraction  # probability that a training image is mirrored
    min_snr_gamma: Annotated[float, Field(gt=0)] | None  # weights noise levels (`Objective.weights`); None: equal
    # Optional: the share of training images whose label is replaced by "no label", which guidance needs. The rest is
    # told its class.
    label_dropout: Fraction = 0.0

    @classmethod
    def check(cls, key: str, value: Any) -> None:
        """Check the value of one key.

        Raises:
            ValueError: it is not allowed.
        """
        field = cls.model_fields[key]
        try:
            kind: Any = Annotated[field.annotation, field]
            TypeAdapter(kind, config=cls.model_config).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise ValueError(f"{key}={short(value)}: {said[0].lower()}{said[1:]}") from None


Handover = Literal["state", "weights"]


class Recipe(Schema):
    """`profiles/recipes/<name>.yaml`: what the network predicts and how it is optimised, the same for all arms."""

    objective: ObjectiveSettings
    # What the phase after a masked one starts from. state: weights, averages and moments as they are, with one schedule
    # over both; weights: the EMA weights alone, with a fresh optimiser and a schedule of its own, as the authors do.
    handover: Handover
    optimisation: Optimisation

    def flat(self) -> dict[str, Any]:
        """All settings for a fingerprint: those of the objective stand beside the others."""
        return self.model_dump(exclude={"objective"}) | flat_settings(self.objective)
