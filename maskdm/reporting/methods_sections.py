"""What the page of the methods says beside its comparisons: every method under every network and objective, and claims.

Everything here is a function of settings and frames: no file is read or written.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from scipy.stats import spearmanr

from maskdm.config.params import Params
from maskdm.reporting.analysis import Row
from maskdm.reporting.page import (
    DISTANCE,
    LOSS,
    NOTHING,
    Answer,
    answer,
    listed,
    mean_and_interval,
    number,
    p_value,
    rows_of,
    table,
)
from maskdm.runtime.units import si

# What each method's authors say it saves, and against what.
CLAIMS = {
    "drop": "MaskDM: up to 4 times as fast as DDPM, measured against other code (arXiv 2306.11363v1)",
    "mixed_crops": "Patch Diffusion: at least 2 times as fast as EDM at equal FID (arXiv 2304.12526)",
    "defer": "micro-budget diffusion: a 1.16 B network for 1,890 dollars (arXiv 2407.15811)",
    "encode_decode": "MaskDiT: DiT-XL/2's FID with 31 % of its training time (arXiv 2306.09305)",
    "route": "TREAD: DiT-XL/2's FID in a 14th of the iterations (arXiv 2501.04765)",
    "sparse_dense": "SPRINT: SiT-XL/2's FID with a 9.8th of the training compute (arXiv 2510.21986)",
    "coarse": "PPFlow: sampling 1.6 times as fast at slightly less training compute (arXiv 2506.23543)",
    "sized_to_noise": "none: it is ours",
}


@dataclass(frozen=True)
class Compared:
    """One part: what was trained, and the means of its arms."""

    params: Params
    arms: pd.DataFrame  # of `analysis.summary`
    data_set: str | None = None  # of the study; None: that of `params.yaml`

    @property
    def label(self) -> str:
        """What tells it from the other parts: `U-ViT, tuned, 4 TFLOPs`, or `photographs, U-ViT, tuned, 4 TFLOPs`."""
        network, _, _ = self.params.model.in_words().partition(",")
        told = (self.data_set, network, self.params.recipe, si(self.params.budget.train_flops, "FLOPs"))
        return ", ".join(filter(None, told))

    @property
    def images(self) -> str:
        """What people call its images."""
        return self.data_set or self.params.data.title

    @property
    def rows(self) -> dict[str, Row]:
        """Of all arms but the baseline and the controls."""
        aside = {self.params.baseline, *self.params.controls}
        return {row["arm"]: row for row in rows_of(self.arms) if row["arm"] not in aside}


def networks_answer(parts: Sequence[Compared]) -> Answer:
    """Every arm under every network, objective and budget, and which of them is below scratch everywhere."""
    arms = list(dict.fromkeys(arm for part in parts for arm in part.rows))
    better = [arm for arm in arms if _everywhere(arm, parts, lambda row: row[f"{LOSS}_high"] < 1)]
    worse = [arm for arm in arms if _everywhere(arm, parts, lambda row: row[f"{LOSS}_low"] > 1)]
    others = [arm for arm in arms if arm not in (*better, *worse)]
    found = (
        f"Clearly below scratch at equal compute wherever it was trained: {listed(better)}; clearly above it "
        f"everywhere: {listed(worse)}; neither: {listed(others)}."
    )
    section = [
        "Compute to scratch's final held-out loss, on the curve; where an arm does not reach it, its loss against "
        "scratch's at equal compute. Each column is a network, a recipe (`profiles/recipes/`) and a budget.",
        table({"arm": arms} | {part.label: [_cell(part.rows.get(arm)) for arm in arms] for part in parts}),
        *_budgets(parts),
    ]
    return answer("Which methods are plug and play?", found, section)


def _budgets(parts: Sequence[Compared]) -> list[str]:
    """The arms that were trained with a smaller budget, too: with which budget each ends at scratch's loss."""
    both = [part for part in parts if part.arms["budget_to_target"].notna().any()]
    arms = list(dict.fromkeys(arm for part in both for arm in part.rows if _has_budget(part.rows[arm])))
    if not arms:
        return []
    shown = {part.label: [_budget(part.rows.get(arm)) for arm in arms] for part in both}
    return [
        "The smallest budget with which the arm, its schedule fitted to it, ends at scratch's final held-out loss. "
        "Arms that end clearly above scratch need more than all of it, and were not trained with less. Where the "
        "smallest budget that was trained suffices, its share counts: an upper bound.",
        table({"arm": arms} | shown),
    ]


def claims_answer(part: Compared) -> Answer:
    """What the authors say their methods save, beside what they save here."""
    methods = {arm: method for arm in part.rows if (method := _method(part.params, arm))}
    rows = {arm: part.rows[arm] for arm in methods}
    held = [arm for arm, row in rows.items() if row[f"{LOSS}_high"] < 1]
    found = f"{len(held)} of {len(rows)} arms train faster than scratch at equal compute: {listed(held)}."
    section = [
        f"Claims are of large networks and long trainings; this is {part.label}, with as many trials to choose the "
        "learning rate of each method as of scratch.",
        table(
            {
                "arm": list(rows),
                "its authors say": [CLAIMS[methods[arm]] for arm in rows],
                "compute to scratch's loss, here": [_cell(row) for row in rows.values()],
            }
        ),
    ]
    return answer("Which claims held at equal compute?", found, section)


def data_sets_answers(parts: Sequence[Compared]) -> list[Answer]:
    """Whether the methods come in the same order on the data set of `params.yaml` and on each other one."""
    return [
        _data_set_answer(own, other)
        for other in parts
        if other.data_set is not None
        for own in parts
        if own.data_set is None and other.label == f"{other.data_set}, {own.label}"
    ]


def _data_set_answer(own: Compared, other: Compared) -> Answer:
    arms = [arm for arm in own.rows if arm in other.rows]
    found = {
        measure: spearmanr(*([part.rows[arm][measure] for arm in arms] for part in (own, other)))
        for measure in (LOSS, DISTANCE)
    }
    loss, distance = (f"{value.statistic:+.2f} ({p_value(value.pvalue)})" for value in found.values())
    section = [
        f"Spearman's rank correlation of {len(arms)} arms by their mean over the seeds, each against its baseline at "
        f"equal compute; p is how often unrelated orders agree at least as much. {own.label}; "
        f"{len(own.params.seeds)} seeds on {own.images}, {len(other.params.seeds)} on {other.images}. Their means:",
        table(
            {"arm": arms}
            | {
                f"{title}, {part.images}": [mean_and_interval(part.rows[arm], measure)[0] for arm in arms]
                for measure, title in ((LOSS, "loss"), (DISTANCE, "distance"))
                for part in (own, other)
            }
        ),
    ]
    said = f"By held-out loss the orders have a rank correlation of {loss}, by distance of {distance}."
    return answer(f"Are the same methods best on {other.data_set}?", said, section)


def _everywhere(arm: str, parts: Sequence[Compared], holds: Callable[[Row], bool]) -> bool:
    return all(holds(part.rows[arm]) for part in parts if arm in part.rows)


def _cell(row: Row | None) -> str:
    if row is None:
        return NOTHING
    reached = row["seeds_at_target"] == row["seeds"]
    return number(row, "compute_to_target") if reached else f"loss {number(row, LOSS)}"


def _has_budget(row: Row) -> bool:
    return not math.isnan(row["budget_to_target"])


def _budget(row: Row | None) -> str:
    return NOTHING if row is None else number(row, "budget_to_target")


def _method(params: Params, arm: str) -> str:
    """What the arm's first phase that shows less does."""
    first = next((phase for phase in params.arms[arm] if phase.shows_less), None)
    return "" if first is None else first.method.name if first.method else "drop"
