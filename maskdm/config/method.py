"""How a phase trains on fewer tokens, as settings: what all methods have in common, and how one is found by its name.

`method: {name: route, ...}` is the class of settings in `maskdm/methods/route.py`, which is imported when a phase names
it: so a method is one file, and who only reads settings does not wait for torch.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeGuard

from pydantic import BeforeValidator, SerializeAsAny

from maskdm.config.masks import Mask, mask_name
from maskdm.config.schema import Schema

PACKAGE = "maskdm.methods"
NO_METHODS = {"masks", "method"}  # the other files there


@dataclass(frozen=True)
class Group:
    """Images of a batch that the network sees in the same way."""

    images: int
    mask: Mask | None = None  # which tokens are kept; None: all
    noise: tuple[float, float] = (0.0, 1.0)  # the part of the noise levels, as quantiles from low to high noise
    weight: float = 1.0  # of the mean of its losses; those of a batch add up to 1
    factor: int = 1  # tokens a side that become one coarse token

    def tokens(self, grid: tuple[int, int]) -> int:
        """Tokens that the network sees of each image.

        Raises:
            ValueError: the mask or the squares of coarse tokens do not fit the grid.
        """
        if grid[0] % self.factor or grid[1] % self.factor:
            raise ValueError(f"method.factor={self.factor} does not divide the {grid[0]}x{grid[1]} token grid")
        kept = self.mask.num_keep(grid) if self.mask else grid[0] * grid[1]
        return kept // self.factor**2


class MethodSettings(Schema):
    """What a phase's `method` says. A method with other groups or costs says so in the functions below."""

    name: str
    takes_mask: ClassVar[bool] = True  # whether `mask` of the phase says which tokens are removed

    @property
    def needs_blocks(self) -> bool:
        """Whether it takes the network apart: only a transformer will do."""
        return False

    def groups(self, batch_size: int, mask: Mask | None) -> tuple[Group, ...]:
        """How a batch is divided."""
        return (Group(batch_size, mask),)

    def tokens_a_block(self, mask: Mask | None, grid: tuple[int, int], depth: int) -> float:
        """Tokens of an image that a block sees, on average over the blocks and images."""
        groups = self.groups(1000, mask)
        return sum(group.images * group.tokens(grid) for group in groups) / sum(group.images for group in groups)

    def check(self, depth: int) -> None:
        """Refuse settings that do not fit the number of blocks; whether the groups fit is checked for every method.

        Raises:
            ValueError: `key=value; allowed: ...`.
        """

    def in_words(self, mask: Mask | None) -> str:
        """For tables: the method and what it removes."""
        name = self.name.replace("_", "-")
        return f"{name}, {mask_name(mask)}" if mask else name


def allot(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total`, as near to `shares` of it as can be, and none of them 0.

    Raises:
        ValueError: `total` is less than the number of shares.
    """
    if total < len(shares):
        raise ValueError(f"batch_size={total}; allowed: at least {len(shares)}, one image for each group of the method")
    wanted = [share / sum(shares) * total for share in shares]
    counts = [max(1, int(number)) for number in wanted]
    while sum(counts) < total:  # the largest remainders first
        counts[max(range(len(counts)), key=lambda i: wanted[i] - counts[i])] += 1
    while sum(counts) > total:
        counts[max(range(len(counts)), key=lambda i: (counts[i] > 1, counts[i] - wanted[i]))] -= 1
    return counts


def names() -> list[str]:
    """The methods there are."""
    files = pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__)
    return sorted({file.name for file in files} - NO_METHODS)


def settings_class(name: str) -> type[MethodSettings]:
    """The settings of a method that there is."""
    module = importlib.import_module(f"{PACKAGE}.{name}")
    [found] = [kind for kind in vars(module).values() if _is_method_of(kind, module.__name__)]
    return found


def _as_its_class(settings: Any) -> Any:
    """The settings as the class that their name belongs to."""
    if isinstance(settings, MethodSettings):
        return settings
    name = settings.get("name") if isinstance(settings, dict) else settings
    if not isinstance(settings, dict) or name not in names():
        raise ValueError(f"name={name}; allowed: {', '.join(names())}, with the settings of that method")
    return settings_class(str(name)).model_validate(settings)


def _is_method_of(kind: Any, module: str) -> TypeGuard[type[MethodSettings]]:
    return isinstance(kind, type) and issubclass(kind, MethodSettings) and kind.__module__ == module


AnyMethod = Annotated[SerializeAsAny[MethodSettings], BeforeValidator(_as_its_class)]
