"""The mask strategies: the three of the paper (its Figure 3), and SPRINT's: which tokens of each image stay visible.

All are drawn for a whole batch in one vectorised call on the device that trains.
"""

import torch
from torch import Tensor

from maskdm.config.masks import BlockMask, CropMask, Mask, PatchMask, StratifiedMask


def draw_ids_keep(mask: Mask, grid: tuple[int, int], batch_size: int, generator: torch.Generator) -> Tensor:
    """Indices of the kept tokens of a `(rows, columns)` grid: int64 `[batch_size, S]`, distinct in each row.

    Every row holds the same number of tokens, `mask.num_keep(grid)`, so that a masked batch is dense.

    Raises:
        ValueError: the mask does not fit the grid, or keeps nothing or everything.
    """
    match mask:
        case PatchMask():
            return _random_subset(grid[0] * grid[1], mask.num_keep(grid), batch_size, generator)
        case BlockMask():
            blocks = _random_subset(mask.num_blocks(grid), mask.num_blocks_keep(grid), batch_size, generator)
            return _square_ids(_block_corners(blocks, grid, mask.block), mask.block, grid)
        case CropMask():
            mask.num_keep(grid)
            return _square_ids(_random_corners(grid, mask.crop, batch_size, generator), mask.crop, grid)
        case StratifiedMask():
            blocks = torch.arange(mask.num_keep(grid), device=generator.device).expand(batch_size, -1)
            place = torch.randint(mask.block**2, blocks.shape, generator=generator, device=generator.device)
            inside = place // mask.block * grid[1] + place % mask.block
            return _block_corners(blocks, grid, mask.block) + inside


def _random_subset(total: int, keep: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """`keep` of `total` items for each row, every subset equally likely: the order of uniform noise. `[B, keep]`."""
    noise = torch.rand(batch_size, total, generator=generator, device=generator.device)
    return noise.topk(keep, dim=1).indices


def _block_corners(blocks: Tensor, grid: tuple[int, int], block: int) -> Tensor:
    """Token index of the upper left corner of each block. `[B, K]` -> `[B, K]`."""
    columns = grid[1] // block
    return (blocks // columns * block) * grid[1] + blocks % columns * block


def _random_corners(grid: tuple[int, int], size: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Token index of the upper left corner of one random square for each row. `[B, 1]`."""
    rows, columns = grid[0] - size + 1, grid[1] - size + 1
    place = torch.randint(rows * columns, (batch_size, 1), generator=generator, device=generator.device)
    return place // columns * grid[1] + place % columns


def _square_ids(corners: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    """Token indices of the `size x size` squares at `corners`. `[B, K]` -> `[B, K * size**2]`."""
    side = torch.arange(size, device=corners.device)
    offsets = (side[:, None] * grid[1] + side).flatten()
    return (corners[:, :, None] + offsets).flatten(1)
