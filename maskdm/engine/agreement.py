"""How the order of masks by `maskdm advise` agrees with what was measured, and what arms gained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from scipy.stats import spearmanr

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.config.study import load_study
from maskdm.datasets.prepared import PreparedData
from maskdm.engine.advice import Advised, advise, in_words, tokens_of
from maskdm.engine.context import TokenCovariance
from maskdm.runtime.paths import PREPARED, ROOT
from maskdm.runtime.units import si
from maskdm.tracking.records import Record, Stage, read_records

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


def agreement(params: Params, recipe: Recipe, tokens: TokenCovariance, sha256: str, root: Path) -> Agreement | None:
    """How the study's measured order of masks agrees with that of `advise`.

    None: the study has no records of these images with this network's tokens.

    Args:
        params: what the study has in common.
        recipe: of them.
        tokens: those of the images.
        sha256: of the data.
        root: of the project.

    Raises:
        MaskDMError: a file of records or settings is damaged.
    """
    path = root / "study" / "params.yaml"
    if not path.is_file():
        return None
    study, losses = load_study(path), final_losses(root, "study", STUDY_PART, sha256)
    if STUDY_PART not in study.parts or not losses:
        return None
    own = study.params(STUDY_PART, params)
    if own.grid != tokens.grid:
        return None
    masks = {
        arm: phases[0].mask
        for arm, phases in own.arms.items()
        if phases[0].mask and arm in losses and not arm.startswith("control")
    }
    if len(masks) < 3:
        return None
    advised = advise(own, recipe, tokens, list(masks.values()))
    by_mask = {found.mask: found for found in advised.masks}
    return compared({arm: by_mask[mask] for arm, mask in masks.items()}, losses)


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
    context = {arm: found[arm].context.heldout for arm in arms}
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


def final_losses(root: Path, stage: Stage, comparison: str | None, sha256: str | None) -> dict[str, dict[int, float]]:
    """The final held-out loss of every arm, by seed.

    Args:
        root: of the project.
        stage: whose records.
        comparison: of the study; None: the only one of the stage.
        sha256: of the data; None: whatever it is.
    """
    losses: dict[str, dict[int, float]] = {}
    for record, _ in read_records(root, (stage,)):
        if comparison is not None and not record.key.startswith(f"{comparison}/"):
            continue
        if "heldout_loss" in record.summary and sha256 in (None, record.data["sha256"]):
            losses.setdefault(record.arm, {})[record.params["seed"]] = record.summary["heldout_loss"]
    return losses


def measured_gains(root: Path, baseline: str) -> list[str]:
    """What the arms of the default comparison gained where it was run, a line each; none: it was not run."""
    records = [record for record, _ in read_records(root, ("default",))]
    losses = final_losses(root, "default", None, None)
    if baseline not in losses:
        return []
    lines = []
    for arm in losses:
        ratios = [losses[arm][seed] / loss for seed, loss in losses[baseline].items() if seed in losses[arm]]
        if arm == baseline or not ratios:
            continue
        of_arm: Record = next(record for record in records if record.arm == arm)
        budget, name = of_arm.params["train_flops"], of_arm.data["name"]
        lines.append(
            f"{arm}: held-out loss {100 * (mean(ratios) - 1):+.1f} % ({100 * (min(ratios) - 1):+.1f} to "
            f"{100 * (max(ratios) - 1):+.1f}, {len(ratios)} seeds) against {baseline}; {name}, {si(budget, 'FLOPs')}"
        )
    return lines


def advice_and_measured(params: Params, recipe: Recipe, root: Path = ROOT) -> str:
    """What `advise` says of the prepared images, how that agrees with the study, and what was gained so far: lines.

    Raises:
        MaskDMError: no images are prepared, or those of other settings, or a record is damaged.
    """
    data = PreparedData.open(root / PREPARED)
    tokens = tokens_of(params, data)
    said = [in_words(advise(params, recipe, tokens), params)]
    if agreed := agreement(params, recipe, tokens, data.info["sha256"], root):
        said.append(f"Measured. {agreed.in_words()}")
    return "\n".join([*said, *(f"Measured. {line}" for line in measured_gains(root, params.baseline))])
