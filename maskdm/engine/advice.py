"""`maskdm advise`: what each mask leaves of the context on these images, what it costs, and which ones to try.

What is computed is a bound for linear denoisers. It orders masks; a network's loss has another size (`engine.context`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from maskdm.config.masks import Mask, effective_mask_ratio, mask_name
from maskdm.config.method import Group
from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.engine.arms import CROPS, growing_crops, masks_to_try
from maskdm.engine.context import IMAGES, Context, NoiseLevels, TokenCovariance, contexts
from maskdm.methods.drop import DROP
from maskdm.methods.method import Trainee
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import expanded
from maskdm.runtime.units import percent
from maskdm.training.objective import make_objective
from maskdm.training.plan import build_network, group_flops, optimizer_flops

SHOWN = (0, 5, 10, 15)  # of the noise levels, those that are printed


@dataclass(frozen=True)
class Advised:
    """What one mask leaves and costs."""

    mask: Mask
    removed: float  # share of the tokens
    cost: float  # of a step, against one on as many whole images
    context: Context

    @property
    def loss_per_saving(self) -> float:
        """Context lost for the compute that is saved: by how much the bound of the loss rises, over 1 - cost."""
        return (self.context.heldout - 1) / (1 - self.cost)

    def beats(self, other: "Advised") -> bool:
        """Whether it leaves more context at no higher cost."""
        return self.cost <= other.cost and self.context.heldout < other.context.heldout


@dataclass(frozen=True)
class Advice:
    """Masks, the best first, and what they were computed from."""

    masks: list[Advised]
    levels: NoiseLevels
    tokens: TokenCovariance

    @property
    def front(self) -> list[Advised]:
        """Masks that no other one beats: more context for no more compute."""
        return [mask for mask in self.masks if not any(other.beats(mask) for other in self.masks)]


def advise(params: Params, recipe: Recipe, tokens: TokenCovariance, masks: Sequence[Mask] | None = None) -> Advice:
    """Masks in the order of the context that they lose for the compute that they save.

    Args:
        params: the network, the tokens, and the batch of the baseline's last phase.
        recipe: the noise levels, and the optimizer.
        tokens: those of the images, as `params` cut them.
        masks: None: one of every kind and size that fits the grid and the network, and those of the arms.
    """
    chosen = fitting_masks(params) if masks is None else list(masks)
    levels = NoiseLevels.of(make_objective(recipe.objective), recipe.optimisation.min_snr_gamma)
    costs = step_costs(params, recipe, chosen)
    found = [
        Advised(mask, effective_mask_ratio(mask, params.grid), cost, context)
        for mask, cost, context in zip(chosen, costs, contexts(tokens, chosen, levels), strict=True)
    ]
    found.sort(key=lambda advised: advised.loss_per_saving)
    return Advice(found, levels, tokens)


def tokens_of(params: Params, data: PreparedData) -> TokenCovariance:
    """The covariance of the tokens of the training images.

    Raises:
        MaskDMError: the data was prepared with other settings, or the grid has too many tokens.
    """
    wanted = [params.data.channels, params.data.image_size, params.data.image_size]
    place = str(expanded(params.data.root, "data.root")) if params.data.root else ""
    is_of_them = data.info["name"] == params.data.name and place in data.info["source"]
    if data.info["shape"] != wanted or not is_of_them:
        raise MaskDMError(
            f"data/prepared holds {data.info['name']} of shape {data.info['shape']} ({data.info['source']}), the "
            f"settings say {params.data.name} of shape {wanted} {place}; run `dvc repro prepare` first"
        )
    return TokenCovariance.of(data.train[:IMAGES], params.model.patch_size)


def fitting_masks(params: Params) -> list[Mask]:
    """`masks_to_try`, and those of the arms, as far as the network can see what they leave."""
    of_arms = [phase.mask for phases in params.arms.values() for phase in phases if phase.mask]
    known = {mask_name(mask): mask for mask in (*masks_to_try(params.grid[0]), *of_arms)}
    fitting = []
    for mask in known.values():
        try:
            params.model.check_mask(mask)
        except ValueError:
            continue
        fitting.append(mask)
    return fitting


def step_costs(params: Params, recipe: Recipe, masks: Sequence[Mask]) -> list[float]:
    """The FLOPs of a step with each mask over those of one without; with the batch of the baseline's last phase."""
    batch_size = params.arms[params.baseline][-1].batch_size
    with torch.device("meta"):
        network = build_network(params.model, params.data, num_classes=1)
    trainee, update = Trainee(network, DROP), optimizer_flops(network, recipe.optimisation)
    steps = [batch_size * group_flops(trainee, Group(batch_size, mask)) + update for mask in (None, *masks)]
    return [step / steps[0] for step in steps[1:]]


def in_words(advice: Advice, params: Params) -> str:
    """A table of the masks, and what is computed, what is a guess, and what to try."""
    snr = [float(advice.levels.snr[place]) for place in SHOWN]
    columns = "{:<28}{:>9}{:>10}" + "{:>10}" * len(SHOWN) + "{:>10}{:>10}{:>11}"
    titles = ["mask", "removed", "step cost", *(f"SNR {value:.2g}" for value in snr), "all", "training", "per saved"]
    lines = [columns.format(*titles)]
    for mask in advice.masks:
        at_levels = [f"{float(mask.context.by_level[place]):.3f}" for place in SHOWN]
        all_levels = f"{mask.context.heldout:.3f}", f"{mask.context.training:.3f}", f"{mask.loss_per_saving:.3f}"
        name = ("* " if mask in advice.front else "  ") + mask_name(mask.mask)
        lines.append(columns.format(name, percent(mask.removed), f"{mask.cost:.2f}", *at_levels, *all_levels))
    return "\n".join([*lines, "", *explanation(advice, params)])


def explanation(advice: Advice, params: Params) -> list[str]:
    """What the numbers are, in sentences."""
    tokens, dim = advice.tokens, params.model.patch_size**2 * params.data.channels
    crops = [phase["mask"]["crop"] for phase in growing_crops(params.grid[0], batch_size=1)]
    said = [
        f"Computed, from {tokens.images:,} images: the error in epsilon of the best linear denoiser with the visible "
        "tokens alone, over that with all tokens, on the same pixels. 1: the mask loses nothing. SNR: signal to noise, "
        "from low noise to high; all: of the mean over the noise levels; training: weighted as in training."
    ]
    if tokens.components < dim:
        said.append(
            f"Only {tokens.components} of the {dim} components of a token, with {percent(tokens.covered)} of the "
            "variance, are known across tokens: the ratios are too low, most of all at low noise."
        )
    if tokens.images < 2 * len(tokens.covariance):
        said.append("The images are few for their covariance, which is shrunk: trust the order, not the digits.")
    return [
        *said,
        "Step cost: FLOPs against a step on as many whole images. Per saved: context lost for the compute saved; it "
        "orders the masks. *: no other mask leaves more context for as little compute.",
        "A bound, not a forecast: a network is no linear denoiser, and its loss differs from these by other factors.",
        "A guess: small crops first, while the loss still has far to fall, and larger ones later. Try crops that grow "
        f"({' -> '.join(f'{crop}x{crop}' for crop in crops)}; the arm `{CROPS}` of `maskdm init`), with a control "
        "that takes the same steps without masks.",
    ]
