"""Every kind of objective, and denoisers with a known answer that speak its language."""

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from maskdm.config.objective import TIME_SCALE, ObjectiveSettings
from maskdm.training.objective import Coefficients, DDPMObjective, EDMObjective, Objective, make_objective

EDM = {"name": "edm", "sigma_data": 0.5, "p_mean": -1.2, "p_std": 1.2, "sigma_min": 0.002, "sigma_max": 80.0}
OBJECTIVES: dict[str, dict[str, Any]] = {
    f"{beta_schedule}, {prediction_type}": {
        "name": "ddpm",
        "num_train_timesteps": 1000,
        "beta_schedule": beta_schedule,
        "prediction_type": prediction_type,
    }
    for beta_schedule in ("linear", "squaredcos_cap_v2")
    for prediction_type in ("epsilon", "v_prediction", "sample")
}
OBJECTIVES |= {
    f"vp, {prediction_type}": {"name": "vp", "prediction_type": prediction_type}
    for prediction_type in ("epsilon", "v_prediction", "sample")
}
OBJECTIVES |= {
    "flow": {"name": "flow", "time_distribution": "uniform"},
    "flow, logit-normal": {"name": "flow", "time_distribution": "logit_normal"},
    "edm": EDM,
}


def objective_settings(raw: dict[str, Any]) -> ObjectiveSettings:
    """Checked settings."""
    return TypeAdapter[ObjectiveSettings](ObjectiveSettings).validate_python(raw)


def ddpm(num_train_timesteps: int, beta_schedule: str, prediction_type: str) -> DDPMObjective:
    """DDPM's objective."""
    settings = {"num_train_timesteps": num_train_timesteps, "beta_schedule": beta_schedule}
    objective = make_objective(objective_settings({"name": "ddpm", "prediction_type": prediction_type, **settings}))
    assert isinstance(objective, DDPMObjective)
    return objective


def told_times(objective: Objective, told: Tensor) -> Tensor:
    """The times that a network was told: the inverse of `Objective.network_time`."""
    if isinstance(objective, EDMObjective):
        return (told.double() * 4 / TIME_SCALE).exp()
    return told if isinstance(objective, DDPMObjective) else told.double() / TIME_SCALE


def told_mix(objective: Objective, told: Tensor) -> Coefficients:
    """What is mixed at the times that a network was told, each `[n, 1, 1]`."""
    mix = objective.coefficients(told_times(objective, told))
    return Coefficients(*(value[:, None, None] for value in (mix.a, mix.b, mix.c, mix.d)))


class Wiener(nn.Module):
    """What no network can beat on x_0 ~ N(mean, std^2): E[c x_0 + d eps | a x_0 + b eps], which is linear."""

    num_tokens, token_dim = 16, 4

    def __init__(self, objective: Objective, mean: float, std: float) -> None:
        super().__init__()
        self.objective, self.mean = objective, nn.Parameter(torch.tensor(mean))
        self.std = std

    def forward(self, x_t: Tensor, told: Tensor, *_: Any, **__: Any) -> Tensor:
        mix = told_mix(self.objective, told)
        centred = (x_t - mix.a * self.mean) / (mix.a**2 * self.std**2 + mix.b**2)
        return mix.c * (self.mean + mix.a * self.std**2 * centred) + mix.d * mix.b * centred


class Oracle(nn.Module):
    """Knows x_0 and the noise, and answers `error` away from the truth in epsilon: with the x_0 that goes with it."""

    def __init__(self, objective: Objective, x_0: Tensor, noise: Tensor, error: float = 0.0) -> None:
        super().__init__()
        self.objective, self.x_0, self.noise, self.error = objective, x_0, noise, error

    def forward(self, x_t: Tensor, told: Tensor, *_: Any, **__: Any) -> Tensor:
        mix = told_mix(self.objective, told)
        x_0 = self.x_0 - mix.b / mix.a * self.error
        return mix.c * x_0 + mix.d * (self.noise + self.error)
