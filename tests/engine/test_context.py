"""The context that a mask leaves, against what conditioning a normal distribution says."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from maskdm.config.masks import BlockMask, CropMask, Mask, PatchMask, StratifiedMask
from maskdm.config.method import Group
from maskdm.engine.context import Context, Contexts, NoiseLevels, mask_errors
from maskdm.engine.token_covariance import TokenCovariance, window_side
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


def known(pixels: int, covariance: np.ndarray) -> TokenCovariance:
    """The exact covariance of tokens of so many pixels, with all of their components."""
    nothing, axes = torch.zeros(9, 0, dtype=torch.float64), torch.eye(pixels, dtype=torch.float64)
    return TokenCovariance(1000, GRID, GRID, torch.from_numpy(covariance), nothing, axes)


def contexts(tokens: TokenCovariance, masks: Sequence[Mask]) -> list[Context]:
    of = Contexts(tokens, lambda _: tokens, patch_size=2, levels=LEVELS)
    return [of([Group(1, mask)]) for mask in masks]


def error_by_conditioning(covariance: np.ndarray, seen: list[int], scored: list[int], snr: float) -> float:
    """The variance of the noise of some pixels, given what is seen of others: by the joint normal distribution."""
    a, b = np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))
    of_input = a**2 * covariance[np.ix_(seen, seen)] + b**2 * np.eye(len(seen))
    with_noise = b * np.eye(len(covariance))[np.ix_(scored, seen)]
    given = np.eye(len(scored)) - with_noise @ np.linalg.inv(of_input) @ with_noise.T
    return float(np.trace(given))


def test_a_mask_costs_what_conditioning_a_normal_distribution_says() -> None:
    covariance = neighbours_alike(pixels=2)
    [found] = contexts(known(2, covariance), [CropMask(strategy="crop", crop=2)])
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
    truth = known(4, neighbours_alike(4) / 4)
    measured = TokenCovariance.of(drawn_images(20_000, 4), patch_size=2)
    for true, found in zip(contexts(truth, MASKS), contexts(measured, MASKS), strict=True):
        assert found.by_level.tolist() == pytest.approx(true.by_level.tolist(), rel=0.01)
        assert found.heldout == pytest.approx(true.heldout, rel=0.01)


def test_fewer_components_of_a_token_lose_some_context_and_keep_the_order_of_masks() -> None:
    images = drawn_images(5000, 4)
    whole, part = (TokenCovariance.of(images, 2, dims) for dims in (36, 9))
    assert (whole.components, part.components) == (4, 1)
    assert whole.covered == pytest.approx(1)
    assert 0.25 < part.covered < 1
    exact, fewer = ([found.heldout for found in contexts(tokens, MASKS)] for tokens in (whole, part))
    assert all(1 < less < more for less, more in zip(fewer, exact, strict=True))
    assert np.argsort(fewer).tolist() == np.argsort(exact).tolist()


def test_tokens_that_tell_nothing_of_each_other_lose_nothing_even_by_a_few_images() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 1, 6, 6)).astype(np.uint8)
    found = contexts(TokenCovariance.of(noise, 2), MASKS)
    assert [context.heldout for context in found] == pytest.approx([1] * 3, abs=0.02)  # unshrunk it would be above 2


def test_a_larger_crop_loses_less() -> None:
    tokens = TokenCovariance.of(drawn_images(2000, 4), 2)
    small, large = contexts(tokens, [CropMask(strategy="crop", crop=side) for side in (1, 2)])
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


def test_one_image_is_refused() -> None:
    with pytest.raises(MaskDMError, match="allowed: at least 2"):
        TokenCovariance.of(np.zeros((1, 1, 6, 6), np.uint8), 2)


# --- coarse views and groups of images --------------------------------------------------------------------------


def pooled_by_conditioning(covariance: np.ndarray, pooling: np.ndarray, seen: np.ndarray, snr: float) -> float:
    """The error of the noise of coarse pixels, given linear combinations `seen` of the noisy pixels."""
    a, b = np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))
    of_input = seen @ (a**2 * covariance + b**2 * np.eye(len(covariance))) @ seen.T
    with_noise = b * pooling @ seen.T
    given = pooling @ pooling.T - with_noise @ np.linalg.inv(of_input) @ with_noise.T
    return float(np.trace(given))


@pytest.mark.parametrize("components", [4, 2])
def test_a_coarse_view_costs_what_conditioning_a_normal_distribution_says(components: int) -> None:
    """4x4 tokens of 2x2 pixels whose means are seen, one token a pixel; some components are known to a token alone."""
    random = np.random.default_rng(0)
    turned, _ = np.linalg.qr(random.normal(size=(4, 4)))
    near = np.exp(-np.abs(np.subtract.outer(np.arange(16), np.arange(16))))
    first, rest = np.kron(near, np.diag([0.5, 0.2, 0.1, 0.05][:components])), np.full((16, 4 - components), 0.03)
    tokens = TokenCovariance(
        1000, (4, 4), (4, 4), torch.from_numpy(first), torch.from_numpy(rest), torch.from_numpy(turned)
    )
    whole = np.zeros((64, 64))
    inside = np.arange(64).reshape(16, 4)
    whole[np.ix_(inside[:, :components].ravel(), inside[:, :components].ravel())] = first
    whole[inside[:, components:].ravel(), inside[:, components:].ravel()] = rest.ravel()
    basis = np.kron(np.eye(16), turned)
    covariance = basis @ whole @ basis.T  # of pixels, token by token
    pooling = np.kron(np.eye(16), np.full((1, 4), 0.25))
    alone, full = tokens.coarse_errors(2, 2, SNR)
    for level, snr in enumerate(SNR.tolist()):
        assert float(alone[level]) == pytest.approx(pooled_by_conditioning(covariance, pooling, pooling, snr), rel=1e-9)
        every = pooled_by_conditioning(covariance, pooling, np.eye(64), snr)
        assert float(full[level]) == pytest.approx(every, rel=1e-9)
        assert alone[level] > full[level]


def test_coarse_pixels_may_be_made_of_several_tokens() -> None:
    """With tokens of one pixel it is what it is with tokens of two a side."""
    images = drawn_images(500, 4)[:, :, :4, :4]
    one, two = (TokenCovariance.of(images, patch_size, dims=64) for patch_size in (1, 2))
    for own, other in zip(one.coarse_errors(2, 1, SNR), two.coarse_errors(2, 2, SNR), strict=True):
        assert own.tolist() == pytest.approx(other.tolist(), rel=0.02)  # each is shrunk by itself


def test_groups_are_seen_at_their_noise_levels_alone() -> None:
    tokens = TokenCovariance.of(drawn_images(500, 4), 2)
    of, crop = Contexts(tokens, lambda _: tokens, 2, LEVELS), CropMask(strategy="crop", crop=2)
    cropped = of([Group(1, crop)])
    found = of([Group(1, crop, noise=(0.0, 0.5), weight=0.5), Group(1, noise=(0.5, 1.0), weight=0.5)])
    assert found.by_level[:2].tolist() == pytest.approx(cropped.by_level[:2].tolist())
    assert found.by_level[2:].tolist() == [1.0, 1.0]
    assert 1 < found.heldout < cropped.heldout


# --- windows of images with many tokens -------------------------------------------------------------------------


def smooth_images(count: int, side: int) -> np.ndarray:
    """Noise whose neighbours are alike at any place, as in photographs; uint8 `[count, 1, side, side]`."""
    noise = torch.randn(count, 1, side + 8, side + 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1)[:, :, :side, :side]
    return ((smooth * 4 + 0.3 * noise[:, :, :side, :side]).clamp(-4, 4) * 30 + 128).byte().numpy()


def test_windows_keep_the_order_of_the_exact_answer_and_are_too_low() -> None:
    images = smooth_images(4000, 24)
    masks: list[Mask] = [
        *(CropMask(strategy="crop", crop=crop) for crop in (10, 8, 5)),
        BlockMask(strategy="block", ratio=0.75, block=2),
        StratifiedMask(strategy="stratified", block=2),
        PatchMask(strategy="patch", ratio=0.9),
    ]
    exact, windows = (TokenCovariance.of(images, 2, side=side) for side in (12, 6))
    assert (exact.is_window, windows.is_window, windows.images) == (False, True, 12_000)
    losses = [
        [float((alone.mean() / whole.mean()) - 1) for alone, whole in (mask_errors(t, mask, SNR) for mask in masks)]
        for t in (exact, windows)
    ]
    assert np.argsort(losses[0]).tolist() == np.argsort(losses[1]).tolist()
    shares = [part / whole for whole, part in zip(*losses, strict=True)]
    assert all(0 < share < 1.05 for share in shares), shares
    assert all(share > 0.6 for share in shares[3:]), "of scattered tokens most of the context is within a window"


@pytest.mark.parametrize(
    ("grid", "rows", "multiple", "side"),
    [((32, 32), None, 1, 32), ((64, 64), None, 1, 16), ((16, 16), 12, 2, 12), ((64, 64), 192, 4, 4)],
)
def test_a_window_is_the_whole_image_where_its_covariance_fits(
    grid: tuple[int, int], rows: float | None, multiple: int, side: int
) -> None:
    assert window_side(grid, rows=rows, multiple=multiple) == side


def test_a_grid_with_many_tokens_is_seen_through_windows() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 128, 128)).astype(np.uint8)
    tokens = TokenCovariance.of(images, 2)
    assert (tokens.grid, tokens.image_grid, tokens.components) == ((16, 16), (64, 64), 4)
