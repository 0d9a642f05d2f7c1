"""The masks: which tokens a phase of pre-training keeps (PAPER.md, "Mask strategies"; Figure 3 of the paper)."""

from typing import Annotated, Literal

from pydantic import Field

from maskdm.config.schema import Positive, Schema
from maskdm.runtime.units import percent


class PatchMask(Schema):
    """Every token is kept or removed on its own; exactly `num_keep` are kept."""

    strategy: Literal["patch"]
    ratio: Annotated[float, Field(gt=0, lt=1)]  # the share that is removed, before rounding

    def num_keep(self, grid: tuple[int, int]) -> int:
        """Tokens kept of a `(rows, columns)` grid: the whole number nearest to `(1 - ratio) * tokens`."""
        return _checked_count(round((1 - self.ratio) * grid[0] * grid[1]), grid[0] * grid[1], self.ratio, "tokens")


class BlockMask(Schema):
    """The grid is cut into `block x block` blocks of tokens; whole blocks are kept or removed."""

    strategy: Literal["block"]
    ratio: Annotated[float, Field(gt=0, lt=1)]  # the share that is removed, before rounding
    block: Positive  # tokens a side

    def num_blocks(self, grid: tuple[int, int]) -> int:
        """Blocks in a `(rows, columns)` grid."""
        return num_blocks(self.block, grid)

    def num_blocks_keep(self, grid: tuple[int, int]) -> int:
        """Blocks kept: the whole number nearest to `(1 - ratio) * blocks`."""
        blocks = self.num_blocks(grid)
        return _checked_count(round((1 - self.ratio) * blocks), blocks, self.ratio, f"{self.block}x{self.block} blocks")

    def num_keep(self, grid: tuple[int, int]) -> int:
        """Tokens kept of a `(rows, columns)` grid."""
        return self.num_blocks_keep(grid) * self.block**2


class CropMask(Schema):
    """One `crop x crop` square of tokens at a random place is kept."""

    strategy: Literal["crop"]
    crop: Positive  # tokens a side

    def num_keep(self, grid: tuple[int, int]) -> int:
        """Tokens kept of a `(rows, columns)` grid."""
        if self.crop > min(grid) or self.crop**2 >= grid[0] * grid[1]:
            raise ValueError(
                f"mask.crop={self.crop} keeps everything or does not fit the {grid[0]}x{grid[1]} token grid; "
                f"allowed: 1 to {min(grid) - 1 if grid[0] == grid[1] else min(grid)}"
            )
        return self.crop**2


class StratifiedMask(Schema):
    """One token, at random, is kept of each `block x block` block of the grid."""

    strategy: Literal["stratified"]
    block: Annotated[int, Field(ge=2)]  # tokens a side

    def num_keep(self, grid: tuple[int, int]) -> int:
        """Tokens kept of a `(rows, columns)` grid: the number of blocks."""
        return num_blocks(self.block, grid)


Mask = Annotated[PatchMask | BlockMask | CropMask | StratifiedMask, Field(discriminator="strategy")]


def fits(mask: Mask, grid: tuple[int, int]) -> bool:
    """Whether the mask keeps some tokens of a `(rows, columns)` grid and removes some."""
    try:
        mask.num_keep(grid)
    except ValueError:
        return False
    return True


def num_blocks(block: int, grid: tuple[int, int]) -> int:
    """Squares of `block` tokens a side in a `(rows, columns)` grid.

    Raises:
        ValueError: they do not cover it.
    """
    if grid[0] % block or grid[1] % block:
        sizes = [b for b in range(1, min(grid)) if grid[0] % b == 0 and grid[1] % b == 0]
        raise ValueError(f"mask.block={block} does not divide the {grid[0]}x{grid[1]} token grid; allowed: {sizes}")
    return (grid[0] // block) * (grid[1] // block)


def _checked_count(keep: int, total: int, ratio: float, unit: str) -> int:
    if 0 < keep < total:
        return keep
    what = "nothing" if keep == 0 else "everything"
    raise ValueError(
        f"mask.ratio={ratio} keeps {what} ({keep} of {total} {unit}); "
        f"allowed: a ratio that keeps 1 to {total - 1} of them"
    )


def effective_mask_ratio(mask: Mask | None, grid: tuple[int, int]) -> float:
    """The share of tokens that `mask` really removes, after rounding to whole tokens or blocks."""
    return 0.0 if mask is None else 1 - mask.num_keep(grid) / (grid[0] * grid[1])


def mask_name(mask: Mask) -> str:
    """A mask in words, with its nominal ratio where it has one."""
    if mask.strategy == "crop":
        return f"{mask.crop}x{mask.crop} crop"
    if mask.strategy == "stratified":
        return f"one token of each {mask.block}x{mask.block}"
    kind = f"{mask.block}x{mask.block} blocks" if mask.strategy == "block" else "patch-wise"
    return f"{kind}, {percent(mask.ratio)}"
