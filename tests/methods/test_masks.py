import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from maskdm.config.masks import BlockMask, CropMask, Mask, PatchMask
from maskdm.methods.masks import draw_ids_keep
from maskdm.runtime.seeding import generator

GRIDS = st.tuples(st.sampled_from([4, 6, 8, 12]), st.sampled_from([4, 6, 8, 12]))


def draw(mask: Mask, grid: tuple[int, int], batch_size: int = 32) -> np.ndarray:
    """Masks as pictures, bool `[batch_size, rows, columns]`, True where kept."""
    ids = draw_ids_keep(mask, grid, batch_size, generator("cpu", 0))
    assert ids.dtype == torch.int64
    assert ids.shape == (batch_size, mask.num_keep(grid))
    assert all(len(set(row)) == len(row) for row in ids.tolist()), "a token was kept twice"
    kept = np.zeros((batch_size, grid[0] * grid[1]), bool)
    np.put_along_axis(kept, ids.numpy(), True, axis=1)
    return kept.reshape(batch_size, *grid)


@given(grid=GRIDS, ratio=st.floats(0.1, 0.9))
def test_patch_masks_keep_the_exact_number(grid: tuple[int, int], ratio: float) -> None:
    mask = PatchMask(strategy="patch", ratio=ratio)
    assert (draw(mask, grid).sum((1, 2)) == round((1 - ratio) * grid[0] * grid[1])).all()


@given(grid=GRIDS, ratio=st.floats(0.2, 0.8))
def test_block_masks_are_made_of_whole_aligned_blocks(grid: tuple[int, int], ratio: float) -> None:
    mask = BlockMask(strategy="block", ratio=ratio, block=2)
    blocks = draw(mask, grid).reshape(-1, grid[0] // 2, 2, grid[1] // 2, 2).sum((2, 4))
    assert np.isin(blocks, (0, 4)).all()
    assert ((blocks == 4).sum((1, 2)) == mask.num_blocks_keep(grid)).all()


@given(grid=GRIDS, size=st.integers(1, 3))
def test_crops_are_contiguous_squares(grid: tuple[int, int], size: int) -> None:
    for kept in draw(CropMask(strategy="crop", crop=size), grid):
        rows, columns = np.nonzero(kept)
        assert rows.max() - rows.min() == columns.max() - columns.min() == size - 1
        assert kept.sum() == size**2


@pytest.mark.parametrize(
    "mask",
    [PatchMask(strategy="patch", ratio=0.9), BlockMask(strategy="block", ratio=0.9, block=2)],
    ids=["patch", "block"],
)
def test_every_token_is_kept_equally_often(mask: Mask) -> None:
    counts = draw(mask, (8, 8), 20_000).sum(0).ravel()
    assert chisquare(counts[:: 4 if isinstance(mask, BlockMask) else 1]).pvalue > 0.001


def test_every_place_of_a_crop_is_equally_likely() -> None:
    kept = draw(CropMask(strategy="crop", crop=3), (8, 8), 20_000)
    corners = kept.reshape(len(kept), -1).argmax(1)
    _, counts = np.unique(corners, return_counts=True)
    assert len(counts) == 36
    assert chisquare(counts).pvalue > 0.001


def test_the_masks_of_a_batch_differ_and_a_seed_repeats_them() -> None:
    mask = PatchMask(strategy="patch", ratio=0.5)
    first, again = draw(mask, (8, 8)), draw(mask, (8, 8))
    assert np.array_equal(first, again)
    assert len({kept.tobytes() for kept in first}) == len(first)
