"""The schema of a comparison: arms of equal compute, each trained with every seed (DESIGN, "One idea").

`params.yaml` holds the default one, `study/params.yaml` more of them; the confirmation of a search is one too.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from maskdm.config.masks import Mask, mask_name
from maskdm.config.method import AnyMethod, Group
from maskdm.config.networks import Model
from maskdm.config.recipe import Handover, Optimisation, Recipe
from maskdm.config.schema import Name, Positive, Schema

Share = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what PyTorch takes


class Phase(Schema):
    """A stretch of training. `override` replaces keys of the recipe's `optimisation`."""

    batch_size: Positive  # images a step, of all processes together
    mask: Mask | None = None  # optional: which tokens are kept; None: all
    method: AnyMethod | None = None  # optional: what becomes of the others; None: they are dropped, as in the paper
    share: Share | None = None  # of the arm's compute; None: what the phases before leave, of the last phase alone
    override: dict[str, Any] = Field(default_factory=dict)  # optional: keys of the recipe's `optimisation`
    positions: bool = True  # optional: whether the network is told where the visible tokens stand (H of the paper)
    handover: Handover | None = None  # optional: what the next phase starts from, in place of the recipe's
    set: Name | None = None  # optional, in `set_parts`: which `others` of its data set the phase sees

    def optimisation(self, recipe: Recipe) -> Optimisation:
        """The recipe's optimisation with this phase's overrides."""
        return Optimisation.model_validate({**recipe.optimisation.model_dump(), **self.override})

    @model_validator(mode="after")
    def _known_overrides(self) -> Self:
        for key in self.override:
            if key not in Optimisation.model_fields:
                raise ValueError(f"override.{key} is not a known key; allowed: {', '.join(Optimisation.model_fields)}")
        for key, value in self.override.items():
            try:
                Optimisation.check(key, value)
            except ValueError as error:
                raise ValueError(f"override.{error}") from None
        return self

    @model_validator(mode="after")
    def _positions_are_of_a_mask(self) -> Self:
        if self.mask is None and not self.positions:
            raise ValueError("positions=false without a mask; allowed: true")
        if self.method is not None and not self.positions:
            raise ValueError(f"positions=false with method.name={self.method.name}; allowed: true")
        return self

    @model_validator(mode="after")
    def _method_and_mask_belong_together(self) -> Self:
        if self.method is None:
            return self
        if self.method.takes_mask and self.mask is None:
            raise ValueError(f"mask is missing; method.name={self.method.name} reads it")
        if not self.method.takes_mask and self.mask is not None:
            raise ValueError(f"mask with method.name={self.method.name}; allowed: none, the method has its own")
        return self

    @property
    def shows_less(self) -> bool:
        """Whether some block sees fewer tokens than there are."""
        return self.mask is not None or self.method is not None

    @property
    def groups(self) -> tuple[Group, ...]:
        """How a batch is divided."""
        if self.method is None:
            return (Group(self.batch_size, self.mask),)
        return self.method.groups(self.batch_size, self.mask)


Arm = Annotated[tuple[Phase, ...], Field(min_length=1)]  # in sequence: pre-training, and at last fine-tuning


class Budget(Schema):
    """What every arm spends, and where along it snapshots of the weights are taken."""

    train_flops: Annotated[float, Field(gt=0)]  # forward, backward and update, of all phases of an arm together
    snapshots: tuple[Share, ...]  # shares of the budget, ascending; the last is 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.snapshots or list(self.snapshots) != sorted(set(self.snapshots)) or self.snapshots[-1] != 1:
            raise ValueError(f"snapshots={list(self.snapshots)}; allowed: ascending shares of the budget, the last 1")
        return self


class Heldout(Schema):
    """The held-out denoising loss: on how many fixed images, and at how many points along the budget."""

    images: Positive  # fixed ones, chosen by a fixed shuffle
    points: Annotated[int, Field(gt=0, le=10_000)]  # measurements, spread evenly over the budget


class Comparison(Schema):
    """Arms x seeds at equal compute."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]  # of the weights, the order of images, and all noise
    budget: Budget
    heldout: Heldout
    arms: dict[Name, Arm]
    baseline: Name  # the arm that the others are compared with
    controls: dict[Name, Name]  # a control -> the arm whose control it is

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}; allowed: each seed once")
        if self.baseline not in self.arms:
            raise ValueError(f"baseline={self.baseline}; allowed: a key of arms ({', '.join(self.arms)})")
        for name, phases in self.arms.items():
            _check_phases(name, phases)
        for control, arm in self.controls.items():
            for name in (control, arm):
                if name not in self.arms:
                    raise ValueError(f"controls: {name}; allowed: a key of arms ({', '.join(self.arms)})")
        return self

    def check_network(self, model: Model, grid: tuple[int, int]) -> None:
        """Check what depends on the network and on the grid of its tokens.

        Raises:
            ValueError: a mask or method does not fit them, or a control differs from its arm in more than those.
        """
        for name, phases in self.arms.items():
            for index, phase in enumerate(phases):
                try:
                    _check_phase(phase, model, grid)
                except ValueError as error:
                    raise ValueError(f"arms.{name}[{index}].{error}") from None
        for control, arm in self.controls.items():
            _check_control(control, arm, self.arms, grid, model.blocks)


def mean_tokens(phase: Phase, grid: tuple[int, int], blocks: int) -> float:
    """Tokens of an image that a block sees in a phase, on average over the blocks and images.

    Raises:
        ValueError: the mask or the method does not fit the grid.
    """
    if phase.method:
        return phase.method.tokens_a_block(phase.mask, grid, blocks)
    return phase.mask.num_keep(grid) if phase.mask else grid[0] * grid[1]


def removed_share(phase: Phase, grid: tuple[int, int], blocks: int) -> float:
    """The share of tokens that a block does not see, on average; of a dropping phase, the effective mask ratio."""
    return 1 - mean_tokens(phase, grid, blocks) / (grid[0] * grid[1])


def methods_in_words(phases: Sequence[Phase]) -> str:
    """What phases in sequence show less by, joined by arrows; those that show everything are left out."""
    return " -> ".join(method_in_words(phase) for phase in phases if phase.shows_less)


def method_in_words(phase: Phase) -> str:
    """What a phase shows less by: its mask, or its method and mask."""
    if phase.method:
        return phase.method.in_words(phase.mask)
    return mask_name(phase.mask) if phase.mask else "whole images"


def _check_phases(name: str, phases: tuple[Phase, ...]) -> None:
    """Refuse shares that do not add up, and what the last phase has no use for."""
    for index, phase in enumerate(phases[:-1]):
        if phase.share is None:
            raise ValueError(f"arms.{name}[{index}].share is missing; only the last phase has none")
    last = f"arms.{name}[{len(phases) - 1}]"
    if phases[-1].share is not None:
        raise ValueError(f"{last}.share={phases[-1].share}; allowed: none, the last phase has the rest")
    if phases[-1].handover is not None:
        raise ValueError(f"{last}.handover={phases[-1].handover}; allowed: none, nothing comes after the last phase")
    if sum(phase.share or 0 for phase in phases) > 1 + 1e-9:
        raise ValueError(f"arms.{name}: the shares add up to more than 1, the whole budget")


def _check_phase(phase: Phase, model: Model, grid: tuple[int, int]) -> None:
    """Refuse a mask or method that does not fit the network."""
    method = phase.method
    if method and method.needs_blocks and model.blocks == 1:
        raise ValueError(
            f"method.name={method.name} with model.name={model.name}; allowed: a method that shows the same tokens to "
            "all blocks (the network cannot be taken apart)"
        )
    if method:
        method.check(model.blocks)
    for group in phase.groups:
        if group.tokens(grid) < grid[0] * grid[1] and group.mask:
            model.check_mask(group.mask)
        if group.factor > 1:
            model.check_image(grid[0] // group.factor * model.patch_size)


def _check_control(control: str, arm: str, arms: dict[str, Arm], grid: tuple[int, int], blocks: int) -> None:
    """Refuse a control that differs from its arm in more than methods: it makes about the same steps, without them."""
    own, others, as_there = arms[control], arms[arm], f"as in {arm}, whose control it is"
    if not any(phase.shows_less for phase in others):
        raise ValueError(f"controls.{control}={arm}, which has neither mask nor method; allowed: an arm that has one")
    if len(own) != len(others):
        raise ValueError(f"arms.{control}: number of phases: {len(own)}; allowed: {len(others)}, {as_there}")
    for index, (phase, other) in enumerate(zip(own, others, strict=True)):
        where = f"arms.{control}[{index}]"
        if phase.shows_less:
            key = "method" if phase.method else "mask"
            raise ValueError(f"{where}.{key}: {method_in_words(phase)}; allowed: none, it is the control of {arm}")
        for key in ("share", "override", "handover"):
            if (found := getattr(phase, key)) != (wanted := getattr(other, key)):
                raise ValueError(f"{where}.{key}={found or 'none'}; allowed: {wanted or 'none'}, {as_there}")
        tokens, whole = other.batch_size * mean_tokens(other, grid, blocks), grid[0] * grid[1]
        # The whole images nearest to as many tokens; one where it takes less than half of one.
        if abs(phase.batch_size * whole - tokens) > max(whole / 2, whole - tokens):
            raise ValueError(
                f"{where}.batch_size={phase.batch_size}; allowed: {max(1, round(tokens / whole))}, which hold about as "
                f"many tokens {as_there}"
            )
