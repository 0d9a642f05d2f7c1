"""The same arm against the same baseline at several budgets: does what it saves grow or shrink with the training?"""

import json
from collections.abc import Sequence

import pandas as pd

from maskdm.reporting.analysed import Analysed
from maskdm.reporting.page import LOSS, Column, mean_and_interval, number, rows_of
from maskdm.runtime.units import si

KEPT = ("arm", "masks", "seeds", "seeds_at_target", "seeds_at_target_by_budget")
FEWEST = 3  # budgets of an arm, to draw a line through
MEASURES = (LOSS, "compute_to_target", "budget_to_target")


def gains(comparisons: Sequence[Analysed]) -> pd.DataFrame:
    """One row an arm and budget, of the arms that were trained with several budgets; none of them: no row.

    An arm is its phases, against a baseline of the same phases, on the same data, network and recipe: names do not
    count. Of comparisons that ask the same at one budget, that with most seeds is taken.

    Returns:
        comparison, trained_as (the arm's name there), series (the number of the arm), baseline, train_flops, and of
        `analysis.summary` `KEPT` and, with their intervals, `MEASURES`.
    """
    rows = []
    for found in comparisons:
        params = found.params
        shared = [found.data["sha256"], params.recipe, params.model.model_dump(), _phases(found, params.baseline)]
        for row in rows_of(found.arms):
            if row["arm"] == params.baseline:
                continue
            kept = {key: row[key] for key in KEPT}
            kept |= {f"{measure}{end}": row[f"{measure}{end}"] for measure in MEASURES for end in ("", "_low", "_high")}
            arm = json.dumps([*shared, _phases(found, row["arm"])])
            rows.append(
                {
                    "comparison": found.name,
                    "trained_as": row["arm"],
                    "settings": arm,
                    "train_flops": params.budget.train_flops,
                    "baseline": params.baseline,
                }
                | kept
            )
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    frame = frame.sort_values("seeds", ascending=False, kind="stable").drop_duplicates(["settings", "train_flops"])
    budgets = frame.groupby("settings")["train_flops"].transform("nunique")
    frame = frame[budgets > 1].sort_index()
    frame["series"] = pd.factorize(frame["settings"])[0]
    frame = frame.drop(columns="settings").sort_values(["series", "train_flops"], ignore_index=True)
    frame["arm"] = frame.groupby("series")["arm"].transform("last")  # one name an arm
    return frame


def most_measured(gained: pd.DataFrame) -> pd.DataFrame:
    """The rows of `gains` of arms with `FEWEST` budgets or more, for a line to be drawn through; of all, if none has.

    Those with two are many: each method that was trained with half of the compute, too.
    """
    if gained.empty:
        return gained
    several = gained.groupby("series")["train_flops"].transform("nunique") >= FEWEST
    return gained[several].reset_index(drop=True) if several.any() else gained


def columns(gained: pd.DataFrame) -> list[Column]:
    """The table of `gains`."""
    rows = rows_of(gained)
    budgets = [row["train_flops"] for row in rows]
    return [
        *(Column(key, [row[key] for row in rows], [row[key] for row in rows]) for key in ("arm", "baseline", "masks")),
        Column("budget", [si(flops, "FLOPs") for flops in budgets], budgets),
        Column("seeds", [str(row["seeds"]) for row in rows], [row["seeds"] for row in rows]),
        Column("loss against the baseline", [number(row, LOSS) for row in rows], [row[LOSS] for row in rows]),
        Column(
            "compute to the baseline's loss",
            [number(row, "compute_to_target") for row in rows],
            [row["compute_to_target"] for row in rows],
        ),
        Column(
            "budget that ends at it",
            [number(row, "budget_to_target") for row in rows],
            [row["budget_to_target"] for row in rows],
        ),
    ]


def finding(gained: pd.DataFrame) -> str:
    """A sentence an arm: its change of the held-out loss at the smallest and the largest budget."""
    lines = []
    for _, own in gained.groupby("series"):
        first, *_, last = rows_of(own)
        ends = [
            f"{text} at {si(row['train_flops'], 'FLOPs')} ({inside})"
            for row in (first, last)
            for text, inside in [mean_and_interval(row, LOSS)]
        ]
        lines.append(f"- `{last['arm']}`, {last['masks'] or 'no masks'}: {', '.join(ends)}.")
    return "\n".join(lines)


def _phases(found: Analysed, arm: str) -> list[object]:
    return [phase.model_dump(mode="json") for phase in found.params.arms[arm]]
