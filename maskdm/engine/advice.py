"""`maskdm advise`: what each mask and coarse view leaves of the context on these images, and what it costs.

What is computed is a bound for linear denoisers. It orders masks; a network's loss has another size (`engine.context`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskdm.config.comparison import Phase, mean_tokens, method_in_words, removed_share
from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.engine.arms import CROPS, growing_crops, masks_to_try
from maskdm.engine.context import Context, Contexts, NoiseLevels
from maskdm.engine.project import require_data_of
from maskdm.engine.token_covariance import DIMS, TokenCovariance, window_side
from maskdm.methods.coarse import Coarse
from maskdm.methods.method import DroppingMethod, Trainee
from maskdm.runtime.paths import PREPARED
from maskdm.runtime.units import percent
from maskdm.training.objective import make_objective
from maskdm.training.plan import build_network, group_flops, method_of, optimizer_flops

SHOWN = (0, 5, 10, 15)  # of the noise levels, those that are printed
HALF = 0.5  # of the noise levels: a coarse view is tried for all of them, and for the noisy half


@dataclass(frozen=True)
class Advised:
    """What one kind of phase leaves and costs."""

    phase: Phase
    removed: float  # share of the tokens
    cost: float  # of a step, against one on as many whole images
    context: Context | None  # None: the bound says nothing of it

    @property
    def loss_per_saving(self) -> float:
        """Context lost for the compute that is saved: by how much the bound of the loss rises, over 1 - cost."""
        return (self.context.heldout - 1) / (1 - self.cost) if self.context else float("inf")

    @property
    def name(self) -> str:
        """The mask, or the method as settings have it."""
        method = self.phase.method
        if method is None or method.takes_mask:
            return method_in_words(self.phase)
        own = method.model_dump(exclude={"name"}, exclude_defaults=True)
        flat = ", ".join(f"{key} {value}" for key, value in own.items() if isinstance(value, str | int | float))
        return f"{method_in_words(self.phase)}, {flat}" if flat else method_in_words(self.phase)

    def beats(self, other: "Advised") -> bool:
        """Whether it leaves more context at no higher cost."""
        if self.context is None or other.context is None:
            return False
        return self.cost <= other.cost and self.context.heldout < other.context.heldout


@dataclass(frozen=True)
class Advice:
    """Kinds of phases, the best first, and what they were computed from."""

    kinds: list[Advised]
    levels: NoiseLevels
    tokens: TokenCovariance

    @property
    def front(self) -> list[Advised]:
        """Those that no other one beats: more context for no more compute."""
        return [kind for kind in self.kinds if kind.context and not any(other.beats(kind) for other in self.kinds)]


def advise(params: Params, recipe: Recipe, images: np.ndarray, phases: Sequence[Phase] | None = None) -> Advice:
    """Kinds of phases in the order of the context that they lose for the compute that they save.

    Args:
        params: the network, the tokens, and the batch of the baseline's last phase.
        recipe: the noise levels, and the optimizer.
        images: of the data, uint8 `[n, C, H, W]`; any prefix is a fair sample.
        phases: None: masks of every kind and size that fit the grid and the network, coarse views, and those of the
            arms.

    Raises:
        MaskDMError: there are fewer than two images.
    """
    chosen = phases_to_try(params) if phases is None else list(phases)
    levels = NoiseLevels.of(make_objective(recipe.objective), recipe.optimisation.min_snr_gamma)
    patch_size = params.model.patch_size
    covariance = cache(partial(TokenCovariance.of, images, patch_size))
    tokens = covariance(side=window_side(params.grid))

    def coarse(factor: int) -> TokenCovariance:
        rows = max(1.0, tokens.token_dim / factor**2)
        return covariance(side=min(tokens.grid[0], window_side(params.grid, DIMS, rows, multiple=factor)))

    contexts = Contexts(tokens, coarse, patch_size, levels)
    found = [
        Advised(
            phase,
            removed_share(phase, params.grid, params.model.blocks),
            cost,
            contexts(phase.groups) if is_judged(phase) else None,
        )
        for phase, cost in zip(chosen, step_costs(params, recipe, chosen), strict=True)
    ]
    return Advice(sorted(found, key=lambda kind: kind.loss_per_saving), levels, tokens)


def is_judged(phase: Phase) -> bool:
    """Whether a linear denoiser sees less: larger patches show it all pixels, other methods show all to some blocks."""
    method = method_of(phase)
    return isinstance(method, DroppingMethod) or (isinstance(method, Coarse) and method.kind == "resolution")


def open_data(params: Params, folder: Path = PREPARED) -> PreparedData:
    """The prepared images of the settings.

    Raises:
        MaskDMError: no data is prepared, or with other settings.
    """
    data = PreparedData.open(folder)
    require_data_of(params, data)
    return data


def phases_to_try(params: Params) -> list[Phase]:
    """Masks of every kind, coarse views, and what the arms show less by, as far as the network can see what they leave.

    All with the batch of the baseline's last phase, by which their steps are compared.
    """
    batch_size = params.arms[params.baseline][-1].batch_size
    masks = [Phase(batch_size=batch_size, mask=mask) for mask in masks_to_try(params.grid[0])]
    coarse = [
        Phase(batch_size=batch_size, method=Coarse(name="coarse", kind=kind, factor=2, above=above))
        for kind in ("resolution", "patch")
        for above in (0.0, HALF)
    ]
    of_arms = [
        Phase(batch_size=batch_size, mask=phase.mask, method=phase.method)
        for phases in params.arms.values()
        for phase in phases
        if phase.shows_less
    ]
    known = {str(phase.model_dump()): phase for phase in (*masks, *coarse, *of_arms)}
    return list(_fitting(known.values(), params))


def _fitting(phases: Iterable[Phase], params: Params) -> Iterable[Phase]:
    for phase in phases:
        alone = params.model_copy(update={"arms": {"tried": (phase,)}, "controls": {}})
        try:
            alone.check_network(params.model, params.grid)
            mean_tokens(phase, params.grid, params.model.blocks)
        except ValueError:
            continue
        yield phase


def step_costs(params: Params, recipe: Recipe, phases: Sequence[Phase]) -> list[float]:
    """The FLOPs of a step of each phase over those of one on as many whole images."""
    with torch.device("meta"):
        network = build_network(params.model, params.data, num_classes=1)
    update = optimizer_flops(network, recipe.optimisation)

    def step(phase: Phase) -> float:
        trainee = Trainee(network, method_of(phase))
        return sum(group.images * group_flops(trainee, group) for group in phase.groups) + update

    dense = {size: step(Phase(batch_size=size)) for size in {phase.batch_size for phase in phases}}
    return [step(phase) / dense[phase.batch_size] for phase in phases]


# --- for readers and scripts --------------------------------------------------------------------------------


def as_rows(advice: Advice) -> list[dict[str, str]]:
    """A table: a row a kind of phase."""
    rows = []
    for kind in advice.kinds:
        numbers = {f"SNR {float(advice.levels.snr[place]):.2g}": "" for place in SHOWN} | {"all": "", "training": ""}
        if kind.context:
            at_levels = [float(kind.context.by_level[place]) for place in SHOWN]
            values = [*at_levels, kind.context.heldout, kind.context.training]
            numbers = {name: f"{value:.3f}" for name, value in zip(numbers, values, strict=True)}
        rows.append(
            {
                "": "*" if kind in advice.front else "",
                "what is shown": kind.name,
                "removed": percent(kind.removed),
                "step cost": f"{kind.cost:.2f}",
                **numbers,
                "per saved": f"{kind.loss_per_saving:.3f}" if kind.context else "",
            }
        )
    return rows


def as_json(advice: Advice) -> dict[str, Any]:
    """The same for a script, with all noise levels."""
    tokens = advice.tokens
    return {
        "images": tokens.images,
        "grid": list(tokens.image_grid),
        "window": list(tokens.grid),
        "components": tokens.components,
        "variance_covered": tokens.covered,
        "snr": advice.levels.snr.tolist(),
        "kinds": [
            {
                "name": kind.name,
                "mask": kind.phase.mask and kind.phase.mask.model_dump(),
                "method": kind.phase.method and kind.phase.method.model_dump(),
                "removed": kind.removed,
                "step_cost": kind.cost,
                "by_level": kind.context and kind.context.by_level.tolist(),
                "all": kind.context and kind.context.heldout,
                "training": kind.context and kind.context.training,
                "per_saved": kind.context and kind.loss_per_saving,
                "on_front": kind in advice.front,
            }
            for kind in advice.kinds
        ],
    }


def explanation(advice: Advice, params: Params) -> list[str]:
    """What the numbers are, in sentences."""
    tokens = advice.tokens
    crops = [phase["mask"]["crop"] for phase in growing_crops(params.grid[0], batch_size=1)]
    grid, window = (f"{rows}x{columns}" for rows, columns in (tokens.image_grid, tokens.grid))
    of = f"{tokens.images:,} windows of {window} of {grid} tokens" if tokens.is_window else f"{tokens.images:,} images"
    said = [
        f"Computed, from {of}: the error in epsilon of the best linear denoiser with what is shown, over that with all "
        "tokens, on the same pixels. 1: nothing is lost. SNR: signal to noise, from low noise to high. All: of the "
        "mean over the noise levels. Training: weighted as in training."
    ]
    if tokens.is_window:
        said.append("What lies outside of a window counts for nothing: the ratios are too low, their order holds.")
    if tokens.components < tokens.token_dim:
        said.append(
            f"Only {tokens.components} of the {tokens.token_dim} components of a token, with {percent(tokens.covered)} "
            "of the variance, are known across tokens: the ratios are too low, most of all at low noise."
        )
    if tokens.images < 2 * len(tokens.covariance):
        said.append("The images are few for their covariance, which is shrunk: trust the order, not the digits.")
    if any(isinstance(kind.phase.method, Coarse) for kind in advice.kinds):
        said.append(
            "Coarse views: at half the resolution the ratio is that of the coarse pixels; details are not trained at "
            "all, which no ratio shows. Larger patches show all pixels: the bound does not judge them."
        )
    return [
        *said,
        "Step cost: FLOPs against a step on as many whole images. Per saved: context lost for the compute saved; it "
        "orders the rows. *: nothing else leaves more context for as little compute.",
        "A bound, not a forecast: a network is no linear denoiser, and its loss differs from these by other factors.",
        "A guess: small crops first, while the loss still has far to fall, and larger ones later. Try crops that grow "
        f"({' -> '.join(f'{crop}x{crop}' for crop in crops)}; the arm `{CROPS}` of `maskdm init`), with a control "
        "that takes the same steps without masks.",
    ]
