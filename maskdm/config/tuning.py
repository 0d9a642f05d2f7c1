"""The schema of a tuning of `study/params.yaml`: settings of single arms that Optuna chooses, equally hard for all.

Every arm gets as many trials, from a space of its own. What comes out is copied into the parts that compare the arms.
"""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from maskdm.config.comparison import Arm, Seed
from maskdm.config.networks import Model
from maskdm.config.params import Params
from maskdm.config.reading import validated
from maskdm.config.recipe import Recipe
from maskdm.config.schema import Name, Positive, Schema
from maskdm.runtime.errors import MaskDMError

RATE = "rate"  # a factor on the learning rates of all phases but the last, or of the only one


class Dimension(Schema):
    """What a setting is chosen from: a range, or a list."""

    first: Any  # of the first trial: what the arm has before it is tuned
    low: float | None = None
    high: float | None = None
    step: Positive | None = None  # optional, of a range: whole numbers from `low` on, so far apart
    choices: tuple[Any, ...] | None = None  # in no order: of numbers a range says more
    log: bool = False  # optional, of a range: whether factors count rather than differences

    @model_validator(mode="after")
    def _a_range_or_a_list(self) -> Self:
        if (self.low is None) != (self.high is None) or (self.low is None) == (self.choices is None):
            raise ValueError("allowed: low and high, or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low={self.low}, high={self.high}; allowed: low below high")
        if self.step and (self.log or self.low is None or self.high is None or (self.high - self.low) % self.step):
            raise ValueError(f"step={self.step}; allowed: what divides high - low, without log")
        return self


class Tuning(Schema):
    """One arm and what is chosen for it: `rate`, or the path of a setting, such as `recipe.optimisation.betas.1`."""

    arm: Arm
    space: Annotated[dict[str, Dimension], Field(min_length=1)]

    def settings(
        self, name: str, params: Params, recipe: Recipe, chosen: dict[str, Any], where: str
    ) -> tuple[Params, Recipe]:
        """The settings of a trial.

        Args:
            name: of the arm.
            params: all else.
            recipe: to start from.
            chosen: a value for each key of `space`.
            where: what an error names, such as `tunings.whole.arms.scratch`.

        Raises:
            MaskDMError: a path leads nowhere, or a value is not allowed there.
        """
        tree: dict[str, Any] = {
            "arm": [phase.model_dump() for phase in self.arm],
            "recipe": recipe.model_dump(),
            "model": params.model.model_dump(),
        }
        for path, value in chosen.items():
            if path == RATE:
                _scale_rates(tree["arm"], value, recipe.optimisation.lr)
            elif not _replaced(tree, path.split("."), value):
                raise MaskDMError(
                    f"{where}.space.{path}: no such setting; allowed: {RATE}, or a path from arm, recipe or model"
                )
        own = {"arms": {name: tree["arm"]}, "baseline": name, "controls": {}, "model": tree["model"]}
        return validated(Params, params.model_dump() | own, where), validated(Recipe, tree["recipe"], where)


class Tuned(Schema):
    """Arms that are tuned with equal numbers of trials of equal compute."""

    seed: Seed  # of the draws and of every trial; no comparison uses it
    train_flops: Annotated[float, Field(gt=0)]
    trials: Positive
    recipe: Name | None = None  # optional: what the trials begin from, in place of that of `params.yaml`
    model: Model | None = None  # optional: the same of the network
    set: Name | None = None  # optional, in `set_tunings`: another data set, one of `sets`
    arms: dict[Name, Tuning]


def _scale_rates(arm: list[dict[str, Any]], factor: float, rate: float) -> None:
    for phase in arm[: max(1, len(arm) - 1)]:
        own = phase["override"].get("lr", rate)
        phase["override"] = phase["override"] | {"lr": float(f"{factor * own:.3g}")}


def _replaced(tree: Any, path: list[str], value: Any) -> bool:
    """Set what `path` leads to, if it leads anywhere; a number in it is a place in a list."""
    *above, last = path
    for key in above:
        if (place := _place(tree, key)) is None:
            return False
        if isinstance(tree[place], tuple):
            tree[place] = list(tree[place])
        tree = tree[place]
    if (place := _place(tree, last)) is None:
        return False
    tree[place] = value
    return True


def _place(tree: Any, key: str) -> str | int | None:
    if isinstance(tree, dict):
        return key if key in tree else None
    if isinstance(tree, list) and key.isdigit() and int(key) < len(tree):
        return int(key)
    return None
