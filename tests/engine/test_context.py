"""The context that a mask leaves, against what conditioning a normal distribution says."""

import itertools

import numpy as np
import pytest
import torch

from maskdm.config.masks import BlockMask, CropMask, Mask, PatchMask
from maskdm.engine.context import NoiseLevels, TokenCovariance, contexts
from maskdm.runtime.errors import MaskDMError
from maskdm.training.objective import Objective, make_objective
from tests.conftest import RECIPE
from tests.denoisers import objective_settings

GRID = 3, 3
SNR = torch.tensor([100.0, 4.0, 1.0, 0.05], dtype=torch.float64)
LEVELS = NoiseLevels(SNR, torch.full((4,), 0.25, dtype=torch.float64))


def neighbours_alike(pixels: int, reach: float = 1.5) -> np.ndarray:
    """A covariance `[9 * pixels, 9 * pixels]` that falls with the distance of two tokens on the grid."""
    places = np.array(list(itertools.product(range(3), range(3))))
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    return np.kron(np.exp(-distance / reach), np.eye(pixels) * 0.2 + 0.05)


def error_by_conditioning(covariance: np.ndarray, seen: list[int], scored: list[int], snr: float) -> float:
    """The variance of the noise of some pixels, given what is seen of others: by the joint normal distribution."""
    a, b = np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))
    of_input = a**2 * covariance[np.ix_(seen, seen)] + b**2 * np.eye(len(seen))
    with_noise = b * np.eye(len(covariance))[np.ix_(scored, seen)]
    given = np.eye(len(scored)) - with_noise @ np.linalg.inv(of_input) @ with_noise.T
    return float(np.trace(given))


def test_a_mask_costs_what_conditioning_a_normal_distribution_says() -> None:
    covariance = neighbours_alike(pixels=2)
    tokens = TokenCovariance(1000, GRID, torch.from_numpy(covariance), torch.zeros(9, 0, dtype=torch.float64))
    [found] = contexts(tokens, [CropMask(strategy="crop", crop=2)], LEVELS)
    places = [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    for level, snr in enumerate(SNR.tolist()):
        alone = whole = 0.0
        for kept in places:
            own = [2 * token + pixel for token in kept for pixel in range(2)]
            alone += error_by_conditioning(covariance, own, own, snr)
            whole += error_by_conditioning(covariance, list(range(18)), own, snr)
        assert float(found.by_level[level]) == pytest.approx(alone / whole, rel=1e-9)
        assert alone / whole > 1


def drawn_images(count: int, pixels: int) -> np.ndarray:
    """Images of 3x3 tokens in a row of `pixels`, drawn with `neighbours_alike`; uint8 `[count, 1, 3 * side, ...]`."""
    side = int(np.sqrt(pixels))
    covariance = neighbours_alike(pixels) / 4
    values = np.random.default_rng(0).multivariate_normal(np.zeros(9 * pixels), covariance, count, method="cholesky")
    tokens = values.reshape(count, 3, 3, side, side).transpose(0, 1, 3, 2, 4).reshape(count, 1, 3 * side, 3 * side)
    return np.clip(np.round((tokens + 1) * 127.5), 0, 255).astype(np.uint8)


MASKS: list[Mask] = [
    CropMask(strategy="crop", crop=2),
    PatchMask(strategy="patch", ratio=0.5),
    BlockMask(strategy="block", ratio=0.8, block=1),
]


def test_images_of_a_known_covariance_give_its_numbers() -> None:
    known = neighbours_alike(4) / 4
    truth = TokenCovariance(1, GRID, torch.from_numpy(known), torch.zeros(9, 0, dtype=torch.float64))
    measured = TokenCovariance.of(drawn_images(20_000, 4), patch_size=2)
    for true, found in zip(contexts(truth, MASKS, LEVELS), contexts(measured, MASKS, LEVELS), strict=True):
        assert found.by_level.tolist() == pytest.approx(true.by_level.tolist(), rel=0.01)
        assert found.heldout == pytest.approx(true.heldout, rel=0.01)


def test_fewer_components_of_a_token_lose_some_context_and_keep_the_order_of_masks() -> None:
    images = drawn_images(5000, 4)
    whole, part = (TokenCovariance.of(images, 2, dims) for dims in (36, 9))
    assert (whole.components, part.components) == (4, 1)
    assert whole.covered == pytest.approx(1)
    assert 0.25 < part.covered < 1
    exact, fewer = ([found.heldout for found in contexts(tokens, MASKS, LEVELS)] for tokens in (whole, part))
    assert all(1 < less < more for less, more in zip(fewer, exact, strict=True))
    assert np.argsort(fewer).tolist() == np.argsort(exact).tolist()


def test_tokens_that_tell_nothing_of_each_other_lose_nothing_even_by_a_few_images() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 1, 6, 6)).astype(np.uint8)
    found = contexts(TokenCovariance.of(noise, 2), MASKS, LEVELS)
    assert [context.heldout for context in found] == pytest.approx([1] * 3, abs=0.02)  # unshrunk it would be above 2


def test_a_larger_crop_loses_less() -> None:
    tokens = TokenCovariance.of(drawn_images(2000, 4), 2)
    small, large = contexts(tokens, [CropMask(strategy="crop", crop=side) for side in (1, 2)], LEVELS)
    assert bool((small.by_level > large.by_level).all())


def test_noise_levels_fall_and_weigh_as_training_does(objective: Objective) -> None:
    levels = NoiseLevels.of(objective, min_snr_gamma=5.0)
    assert bool((levels.snr.diff() < 0).all())
    assert float(levels.weights.sum()) == pytest.approx(1)


def test_noise_levels_of_whole_time_steps_are_those_of_the_schedule() -> None:
    settings = RECIPE["objective"] | {"num_train_timesteps": 1000}
    objective = make_objective(objective_settings(settings))
    levels = NoiseLevels.of(objective, None)
    mix = objective.coefficients(torch.arange(25, 1000, 50))
    assert levels.snr[2:18].tolist() == pytest.approx(((mix.a / mix.b).square())[2:18].tolist(), rel=0.1)
    # An error in v is one in eps times sqrt(alpha_bar): without a gamma its square has the weight 1 / alpha_bar.
    assert (levels.weights[10] / levels.weights[5]).item() == pytest.approx(
        float((mix.a[5] / mix.a[10]).square()), rel=0.05
    )


@pytest.mark.parametrize(
    ("count", "dims", "message"), [(1, 36, "allowed: at least 2"), (5, 8, "3x3 tokens.* allowed: at most 8 tokens")]
)
def test_what_has_no_covariance_is_refused(count: int, dims: int, message: str) -> None:
    with pytest.raises(MaskDMError, match=message):
        TokenCovariance.of(np.zeros((count, 1, 6, 6), np.uint8), 2, dims)
