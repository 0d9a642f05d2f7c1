"""How the order of masks by `maskdm advise` agrees with what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from scipy.stats import spearmanr

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.config.study import load_study
from maskdm.engine.advice import Advised, advise
from maskdm.runtime.paths import ROOT
from maskdm.tracking.records import Record, read_arms

STUDY_PART = "masks"  # of the study: one masked phase an arm, and nothing else differs
NEAR = 0.1  # masks whose shares of removed tokens differ by less remove about as much


@dataclass(frozen=True)
class Agreement:
    """How well an order of masks by `advise` agrees with the order of their measured held-out losses."""

    masks: int
    by_saving: float  # Spearman's rank correlation: by context lost for the compute saved
    by_context: float  # by the context alone
    at_equal_ratio: float  # by the context, within masks that remove about as much: share of pairs in the same order
    pairs: int
    of_halves: float  # of the losses of one half of the seeds with those of the other: what noise allows

    def in_words(self) -> str:
        """One sentence for each number."""
        return (
            f"The study's order of {self.masks} masks by held-out loss, on these images: rank correlation "
            f"{self.by_saving:+.2f} with context lost per compute saved, {self.by_context:+.2f} with context lost "
            f"alone. Of {self.pairs} pairs that remove about as much, the one that loses less context ends lower in "
            f"{100 * self.at_equal_ratio:.0f} %. Two halves of the study's seeds agree with each other by "
            f"{self.of_halves:+.2f}."
        )


def agreement(params: Params, recipe: Recipe, images: np.ndarray, sha256: str, root: Path = ROOT) -> Agreement | None:
    """How the study's measured order of masks agrees with that of `advise`.

    None: the study has no records of these images with this network's tokens.

    Args:
        params: what the study has in common.
        recipe: of them.
        images: of the data, as for `advise`.
        sha256: of the data.
        root: of the project.

    Raises:
        MaskDMError: a file of records or settings is damaged.
    """
    path = root / "study" / "params.yaml"
    if not path.is_file():
        return None
    study, losses = load_study(path), final_losses(root, STUDY_PART, sha256)
    if STUDY_PART not in study.parts or not losses:
        return None
    own = study.params(STUDY_PART, params)
    if own.grid != params.grid:
        return None
    masked = {arm: phases[0] for arm, phases in own.arms.items() if phases[0].mask and arm in losses}
    if len(masked) < 3:
        return None
    by_mask = {found.phase.mask: found for found in advise(own, recipe, images, list(masked.values())).kinds}
    return compared({arm: by_mask[phase.mask] for arm, phase in masked.items()}, losses)


def compared(found: Mapping[str, Advised], losses: Mapping[str, Mapping[int, float]]) -> Agreement:
    """The agreement of what is advised for arms with their final losses by seed."""
    arms = list(found)
    measured = [mean(losses[arm].values()) for arm in arms]
    seeds = sorted(set.intersection(*(set(losses[arm]) for arm in arms)))
    halves = [[mean(losses[arm][seed] for seed in half) for arm in arms] for half in (seeds[::2], seeds[1::2]) if half]
    pairs = [
        (first, second)
        for place, first in enumerate(arms)
        for second in arms[place + 1 :]
        if abs(found[first].removed - found[second].removed) < NEAR
    ]
    context = {arm: kind.context.heldout for arm, kind in found.items() if kind.context}
    loss = dict(zip(arms, measured, strict=True))
    same = [(context[one] - context[two]) * (loss[one] - loss[two]) > 0 for one, two in pairs]
    return Agreement(
        masks=len(arms),
        by_saving=_rank_correlation([found[arm].loss_per_saving for arm in arms], measured),
        by_context=_rank_correlation(list(context.values()), measured),
        at_equal_ratio=mean(same) if same else float("nan"),
        pairs=len(pairs),
        of_halves=_rank_correlation(*halves) if len(halves) == 2 else float("nan"),
    )


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    return float(spearmanr(first, second).statistic)


def final_losses(root: Path, comparison: str, sha256: str) -> dict[str, dict[int, float]]:
    """The final held-out loss of every arm of a comparison on these data, by seed."""
    losses: dict[str, dict[int, float]] = {}
    for name, records in read_arms(root).items():
        own, _, arm = name.partition("/")
        known = {seed: record.summary["heldout_loss"] for seed, record in records.items() if _is_of(record, sha256)}
        if own == comparison and known:
            losses[arm] = known
    return losses


def _is_of(record: Record, sha256: str) -> bool:
    return record.data["sha256"] == sha256 and "heldout_loss" in record.summary
