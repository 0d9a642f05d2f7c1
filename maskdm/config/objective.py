"""The objective: how images become noise in training, and what the network predicts of the two.

A noisy image is a x_0 + b eps: part image, part normal noise. `training.objective` says what a and b are.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from maskdm.config.schema import Schema

# epsilon: the noise; sample: the image x_0; v_prediction: a eps - b x_0 (Salimans & Ho 2022)
PredictionType = Literal["epsilon", "v_prediction", "sample"]
AboveZero = Annotated[float, Field(gt=0)]


class DDPM(Schema):
    """Noise in whole time steps (Ho et al. 2020)."""

    name: Literal["ddpm"] = "ddpm"  # a default, which no fingerprint holds: recorded trials have none of the name
    num_train_timesteps: Annotated[int, Field(ge=2)]
    beta_schedule: Literal["linear", "squaredcos_cap_v2"]  # squaredcos_cap_v2: cosine (Nichol & Dhariwal 2021)
    prediction_type: PredictionType


class VP(Schema):
    """The variance-preserving SDE (Song et al. 2021): time runs from 0 to 1, with the cosine schedule."""

    name: Literal["vp"]
    prediction_type: PredictionType


class Flow(Schema):
    """Rectified flow (Liu et al. 2022): straight lines from images to noise; the network predicts their velocity."""

    name: Literal["flow"]
    time_distribution: Literal["uniform", "logit_normal"]  # logit_normal: more of the middle (Esser et al. 2024)


class EDM(Schema):
    """Noise is added to images as they are; what the network is shown and answers is scaled (Karras et al. 2022)."""

    name: Literal["edm"]
    sigma_data: AboveZero  # standard deviation of the pixels, in [-1, 1]
    p_mean: float  # of ln sigma in training, which is normal
    p_std: AboveZero
    sigma_min: AboveZero  # of the samplers: from sigma_max down to it, and then to 0
    sigma_max: AboveZero

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min}; allowed: below sigma_max ({self.sigma_max})")
        return self


ObjectiveSettings = Annotated[DDPM | VP | Flow | EDM, Field(discriminator="name")]

# The samplers that know the process of an objective.
SAMPLERS: dict[str, tuple[str, ...]] = {
    "ddpm": ("ddpm", "ddim", "dpm_solver", "unipc"),
    "vp": ("ddpm", "ddim", "dpm_solver", "unipc"),
    "flow": ("euler", "heun", "dpm_solver", "unipc"),
    "edm": ("euler", "dpm_solver"),
}

TIME_SCALE = 1000  # the network is told a time from 0 to 1 as so many time steps, the size its embedding is made for


def objective_name(objective: DDPM | VP | Flow | EDM) -> str:
    """What is predicted, in words."""
    match objective:
        case DDPM():
            schedule = f"{objective.beta_schedule} schedule with {objective.num_train_timesteps} timesteps"
            return f"{objective.prediction_type}, {schedule}"
        case VP():
            return f"{objective.prediction_type}, cosine schedule in continuous time"
        case Flow():
            return f"rectified flow, times {objective.time_distribution.replace('_', '-')}"
        case EDM():
            return f"EDM, ln sigma normal with mean {objective.p_mean:g} and standard deviation {objective.p_std:g}"


def flat_settings(objective: DDPM | VP | Flow | EDM) -> dict[str, Any]:
    """The settings beside those of the recipe, as recorded trials have them: DDPM's are its own three keys alone."""
    found = objective.model_dump(exclude_defaults=True)
    return {"objective" if key == "name" else key: value for key, value in found.items()}
