"""The objectives, and the one denoising loss that pre-training, fine-tuning and the baseline share.

An objective is linear. At time t the network is shown a x_0 + b eps and is to answer c x_0 + d eps, with images x_0,
normal noise eps, and coefficients that depend on t. Its input given, an answer that is wrong by e means an eps that is
wrong by a e / (a d - b c) and an x_0 that is wrong by -b e / (a d - b c). So the losses of all objectives convert into
each other. Where an objective scales the network's input, the scale is part of a and b.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor

from maskdm.config.objective import DDPM, EDM, TIME_SCALE, VP, Flow, ObjectiveSettings

Part = tuple[float, float]  # from one quantile to another
WHOLE: Part = (0.0, 1.0)


@dataclass(frozen=True)
class Coefficients:
    """The network is shown a x_0 + b eps and is to answer c x_0 + d eps; each `[n]`, float32."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> "Coefficients":
        """Rounded to float32 at last: near both ends of a process 1 - t and the like need more digits."""
        return cls(a.float(), b.float(), c.float(), d.float())

    @property
    def determinant(self) -> Tensor:
        """That of the two equations, a d - b c: `[n]`, never 0."""
        return self.a * self.d - self.b * self.c


class Objective(ABC):
    """A process from images to noise, and what the network predicts. Times `[n]` mean what each objective says."""

    num_train_timesteps = TIME_SCALE
    settings: ObjectiveSettings

    @abstractmethod
    def draw_times(self, count: int, random: torch.Generator, part: Part = WHOLE) -> Tensor:
        """Times to train at, `[count]`, on the generator's device.

        Args:
            count: of images.
            random: draws them.
            part: only those between two quantiles of the training's distribution, in [0, 1]; low ones are less noisy.
        """

    @abstractmethod
    def times_at(self, alpha_bar: Tensor) -> Tensor:
        """The times of noise levels `[n]`: float64 `[n]`.

        A level is alpha_bar = a^2 / (a^2 + b^2), in (0, 1): the signal's share, for images of variance 1.
        """

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of times `[n]`: numbers of the size of time steps, as its embedding expects."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """What is mixed at times `[n]`."""

    def network_input(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is shown of tokens or images `[n, ...]`, with noise of that shape, at times `[n]`."""
        mix = self.coefficients(t)
        return _over(mix.a, x_0) * x_0 + _over(mix.b, x_0) * noise

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What it is to answer, of the same shape."""
        mix = self.coefficients(t)
        return _over(mix.c, x_0) * x_0 + _over(mix.d, x_0) * noise

    def epsilon_error(self, loss: Tensor, t: Tensor) -> Tensor:
        """The squared error in eps that belongs to a loss `[n]` at times `[n]`: comparable for all objectives."""
        mix = self.coefficients(t)
        return (mix.a / mix.determinant) ** 2 * loss

    def weights(self, t: Tensor, min_snr_gamma: float | None) -> Tensor:
        """Weights of the losses at times `[n]`: `[n]`, all 1 without a gamma (min-SNR: Hang et al. 2023, 2303.09556).

        They weigh the squared error in x_0 by min(SNR, gamma), with the signal-to-noise ratio SNR = (a / b)^2.
        """
        if min_snr_gamma is None:
            return torch.ones(len(t), device=t.device)
        mix = self.coefficients(t)
        return (mix.a / mix.b).square().clamp(max=min_snr_gamma) * (mix.b / mix.determinant) ** 2


class VariancePreserving(Objective):
    """a = sqrt(alpha_bar) and b = sqrt(1 - alpha_bar); the network predicts the noise, the image, or v."""

    def __init__(self, settings: DDPM | VP) -> None:
        self.settings = settings
        self.prediction_type = settings.prediction_type

    @abstractmethod
    def alpha_bar(self, t: Tensor) -> Tensor:
        """The signal's share of the variance at times `[n]`: `[n]`."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """Of the schedule; v is a eps - b x_0 (Salimans & Ho 2022)."""
        signal = self.alpha_bar(t)
        a, b = signal**0.5, (1 - signal) ** 0.5
        match self.prediction_type:
            case "epsilon":
                return Coefficients.of(a, b, torch.zeros_like(a), torch.ones_like(a))
            case "sample":
                return Coefficients.of(a, b, torch.ones_like(a), torch.zeros_like(a))
            case "v_prediction":
                return Coefficients.of(a, b, -b, a)

    # What the general formulas come to with a^2 + b^2 = 1, in the order in which recorded trials were computed.

    def epsilon_error(self, loss: Tensor, t: Tensor) -> Tensor:
        """An error in v is sqrt(alpha_bar) times it in eps, one in x_0 is sqrt(SNR) times it."""
        signal = self.alpha_bar(t)
        match self.prediction_type:
            case "epsilon":
                return loss
            case "sample":
                return (signal / (1 - signal)).float() * loss
            case "v_prediction":
                return signal.float() * loss

    def weights(self, t: Tensor, min_snr_gamma: float | None) -> Tensor:
        """A squared error in eps is SNR times that in x_0, one in v SNR + 1 times."""
        if min_snr_gamma is None:
            return super().weights(t, None)
        signal = self.alpha_bar(t)
        snr = signal / (1 - signal)
        weight = snr.clamp(max=min_snr_gamma)
        match self.prediction_type:
            case "epsilon":
                return (weight / snr).float()
            case "sample":
                return weight.float()
            case "v_prediction":
                return (weight / (snr + 1)).float()


class DDPMObjective(VariancePreserving):
    """Whole time steps from 0 to T - 1 (Ho et al. 2020). A level between two steps has a time between them."""

    def __init__(self, settings: DDPM) -> None:
        super().__init__(settings)
        self.num_train_timesteps = settings.num_train_timesteps
        schedule = DDPMScheduler(settings.num_train_timesteps, beta_schedule=settings.beta_schedule)
        # ln SNR falls from step to step; float64, so that alpha_bar comes back to the last bit of float32.
        self.log_snr = torch.logit(schedule.alphas_cumprod.double())

    def draw_times(self, count: int, random: torch.Generator, part: Part = WHOLE) -> Tensor:
        """Uniform, int64; the part holds one step at least."""
        low, high = (round(quantile * self.num_train_timesteps) for quantile in part)
        return (low + (high - low) * _stratified(count, random)).long().clamp(max=high - 1)

    def times_at(self, alpha_bar: Tensor) -> Tensor:
        """Linear in ln SNR between two steps, and beyond the first and the last one."""
        level, steps = torch.logit(alpha_bar.double()), self.log_snr.to(alpha_bar.device)
        before = (torch.searchsorted(-steps, -level) - 1).clamp(0, self.num_train_timesteps - 2)
        return before + (steps[before] - level) / (steps[before] - steps[before + 1])

    def alpha_bar(self, t: Tensor) -> Tensor:
        """That of diffusers' scheduler at whole steps; the inverse of `times_at` between them."""
        self.log_snr = self.log_snr.to(t.device)
        before = t.long().clamp(0, self.num_train_timesteps - 2)
        return torch.lerp(self.log_snr[before], self.log_snr[before + 1], (t - before).double()).sigmoid().float()

    def network_time(self, t: Tensor) -> Tensor:
        """The time step; no other than those of training, whatever the level."""
        return t.clamp(0, self.num_train_timesteps - 1)


class VPObjective(VariancePreserving):
    """Time from 0 to 1 (Song et al. 2021), with the cosine schedule (Nichol & Dhariwal 2021, eq. 17).

    In the terms of `DDPMObjective` with 1000 steps, t is (step + 1) / 1000. At t = 1 nothing of the image would be
    left, so alpha_bar ends at that of the last step.
    """

    OFFSET = 0.008  # s of eq. 17

    def __init__(self, settings: VP) -> None:
        super().__init__(settings)
        self.start = math.cos(self.OFFSET / (1 + self.OFFSET) * math.pi / 2)
        self.lowest = cosine_schedule(TIME_SCALE)[-1].item()

    def draw_times(self, count: int, random: torch.Generator, part: Part = WHOLE) -> Tensor:
        """Uniform."""
        return _quantiles(count, random, part)

    def times_at(self, alpha_bar: Tensor) -> Tensor:
        """The inverse of `alpha_bar`."""
        angle = torch.acos(alpha_bar.double().sqrt() * self.start)
        return angle / (math.pi / 2) * (1 + self.OFFSET) - self.OFFSET

    def alpha_bar(self, t: Tensor) -> Tensor:
        """float64, for the noise of times near 0."""
        angle = (t.double() + self.OFFSET) / (1 + self.OFFSET) * (math.pi / 2)
        return (angle.cos() / self.start).square().clamp(min=self.lowest)

    def network_time(self, t: Tensor) -> Tensor:
        """As if there were 1000 time steps."""
        return TIME_SCALE * t


class FlowObjective(Objective):
    """Rectified flow (Liu et al. 2022): (1 - t) x_0 + t eps, with t from 0 to 1, and its velocity eps - x_0."""

    def __init__(self, settings: Flow) -> None:
        self.settings = settings
        self.time_distribution = settings.time_distribution

    def draw_times(self, count: int, random: torch.Generator, part: Part = WHOLE) -> Tensor:
        """Uniform, or the logistic function of a standard normal (Esser et al. 2024, eq. 19 with m = 0, s = 1)."""
        quantiles = _quantiles(count, random, part)
        return quantiles if self.time_distribution == "uniform" else torch.special.ndtri(quantiles).sigmoid()

    def times_at(self, alpha_bar: Tensor) -> Tensor:
        """The ratio of noise to signal is t / (1 - t)."""
        ratio = _noise_to_signal(alpha_bar)
        return ratio / (1 + ratio)

    def coefficients(self, t: Tensor) -> Coefficients:
        """Of a straight line."""
        return Coefficients.of(1 - t, t, -torch.ones_like(t), torch.ones_like(t))

    def network_time(self, t: Tensor) -> Tensor:
        """As if there were 1000 time steps."""
        return TIME_SCALE * t


class EDMObjective(Objective):
    """x_0 + sigma eps (Karras et al. 2022, Table 1); a time is the noise's standard deviation sigma itself.

    The network F is shown c_in (x_0 + sigma eps), and D = c_skip (x_0 + sigma eps) + c_out F is to be x_0. What F is to
    answer for that is sigma / (sigma_data s) x_0 - sigma_data / s eps, with s^2 = sigma^2 + sigma_data^2. There their
    weight lambda = 1 / c_out^2 of the error of D is 1.
    """

    def __init__(self, settings: EDM) -> None:
        self.settings = settings
        self.sigma_data, self.mean, self.std = settings.sigma_data, settings.p_mean, settings.p_std

    def draw_times(self, count: int, random: torch.Generator, part: Part = WHOLE) -> Tensor:
        """Of normal logarithm."""
        return (self.mean + self.std * torch.special.ndtri(_quantiles(count, random, part))).exp()

    def times_at(self, alpha_bar: Tensor) -> Tensor:
        """The ratio of noise to signal is sigma."""
        return _noise_to_signal(alpha_bar)

    def coefficients(self, t: Tensor) -> Coefficients:
        """c_in = 1 / s scales the input to variance 1."""
        s = (t**2 + self.sigma_data**2) ** 0.5
        return Coefficients.of(1 / s, t / s, t / (self.sigma_data * s), -self.sigma_data / s)

    def network_time(self, t: Tensor) -> Tensor:
        """c_noise = ln(sigma) / 4, as if time were from 0 to 1 and there were 1000 time steps."""
        return TIME_SCALE * t.log() / 4


def make_objective(settings: ObjectiveSettings) -> Objective:
    """The objective of a recipe."""
    match settings:
        case DDPM():
            return DDPMObjective(settings)
        case VP():
            return VPObjective(settings)
        case Flow():
            return FlowObjective(settings)
        case EDM():
            return EDMObjective(settings)


def denoising_loss(
    network: Callable[..., Tensor],
    objective: Objective,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    ids_keep: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Mean squared error of each image's prediction: DSM with all tokens, MDSM with the kept ones (PAPER, Objectives).

    Nothing here depends on the mask: masked, `x_0` and `noise` hold the visible tokens alone (xhat_0 and epshat of the
    paper), and `ids_keep` tells the network where they stand.

    Args:
        network: predicts.
        objective: what.
        x_0: clean tokens in [-1, 1], `[B, S, token_dim]`.
        t: times of the objective, `[B]`.
        noise: standard normal, like `x_0`.
        ids_keep: places of the tokens, `[B, S]`; None: all tokens.
        labels: classes, `[B]`.

    Returns:
        The loss of each image, `[B]`, in float32.
    """
    x_t = objective.network_input(x_0, noise, t)
    prediction = network(x_t, objective.network_time(t), ids_keep, labels)
    return F.mse_loss(prediction.float(), objective.target(x_0, noise, t), reduction="none").mean(dim=(1, 2))


def cosine_schedule(num_train_timesteps: int) -> Tensor:
    """alpha_bar of each step of the cosine schedule, `[num_train_timesteps]` (Nichol & Dhariwal 2021)."""
    return DDPMScheduler(num_train_timesteps, beta_schedule="squaredcos_cap_v2").alphas_cumprod


def _stratified(count: int, random: torch.Generator) -> Tensor:
    """A uniform number from each of `count` equal parts of [0, 1), in their order (Kingma et al. 2021, section I.1).

    A batch then has noise levels of all kinds: what it says varies less.
    """
    places = torch.arange(count, device=random.device)
    return (places + torch.rand(count, generator=random, device=random.device)) / count


def _quantiles(count: int, random: torch.Generator, part: Part) -> Tensor:
    """Stratified in a part of (0, 1), `[count]`; never 0 or 1, where a normal is infinite."""
    low, high = part
    return (low + (high - low) * _stratified(count, random)).clamp(2**-24, 1 - 2**-24)


def _noise_to_signal(alpha_bar: Tensor) -> Tensor:
    """The ratio b / a of levels `[n]`, float64."""
    signal = alpha_bar.double()
    return ((1 - signal) / signal).sqrt()


def _over(values: Tensor, images: Tensor) -> Tensor:
    """Values `[n]` in a shape that multiplies `images`, `[n, ...]`."""
    return values.view(-1, *(1 for _ in images.shape[1:]))
