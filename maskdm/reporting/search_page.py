"""What a search came to, in words."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from maskdm.config.params import Params
from maskdm.reporting.analysis import Records, compute_to_target, interval
from maskdm.reporting.page import LOSS, Column, mean_and_interval
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reading
from maskdm.runtime.units import four_digits, percent, si
from maskdm.tracking.records import Record, distance_metric

SHOWN = 5  # trials in the table of the page
TITLES = {  # of the columns of the trials
    "trial": "trial",
    "masks": "masks",
    "share": "share of compute",
    "batch_size": "batch",
    "lr": "learning rate",
    "heldout_loss": "held-out loss",
    "state": "state",
}
CAPTION = """\
First the held-out loss of each trial, a pruned one where it was stopped, and the best so far against the compute of \
all trials up to then. Second their learning curves, and the best loss that any of them had at each compute: the \
colour of a point says which mask leads there. Third how much each parameter decides whether a trial is among the \
better ones; one that only some masks have (a ratio, the side of a crop) is judged among those, and with few trials \
all of it is rough. Last a line a trial, the darker the better; pruned ones are grey."""


def confirmation(trials: pd.DataFrame, records: Records) -> pd.DataFrame:
    """One row a run of the search's `records` that confirms, the best trials first, then `paper` and `scratch`.

    Columns: `arm`, `masks` (in words), `seed`, `heldout_loss`, the Fréchet distance under its name, `kid`,
    `train_flops`, `compute_to_target` (at which it reached scratch's final held-out loss of the same seed, as a share
    of what scratch spent; infinity: it never did).

    Raises:
        MaskDMError: there is none.
    """
    runs = [record for record, _ in records if record.key.startswith("confirm/")]
    if not runs:
        raise MaskDMError("no records of runs that confirm the search; its stage writes them")
    words = {f"trial{number}": masks for number, masks in zip(trials["trial"], trials["masks"], strict=True)}
    complete = trials[trials["state"] == "complete"].sort_values(["heldout_loss", "trial"])
    rank = {f"trial{number}": place for place, number in enumerate(complete["trial"])}
    scratch = {record.params["seed"]: record.summary for record in runs if record.arm == "scratch"}
    rows = [
        {
            "arm": record.arm,
            "masks": words.get(record.arm) or _masks(record),
            "seed": record.params["seed"],
            **{name: record.summary[name] for name in ("heldout_loss", distance_metric(record.summary), "kid")},
            "train_flops": record.summary["train_flops"],
            "compute_to_target": _to_target(record, scratch[record.params["seed"]]),
        }
        for record in runs
    ]
    order = {"paper": len(rank), "scratch": len(rank) + 1}
    rows.sort(key=lambda row: (rank.get(row["arm"], order.get(row["arm"], -1)), row["seed"]))
    return pd.DataFrame(rows)


def _to_target(record: Record, scratch: dict[str, Any]) -> float:
    curve = [row for row in record.history if "heldout_loss" in row]
    flops, losses = ([row[name] for row in curve] for name in ("train_flops", "heldout_loss"))
    return compute_to_target(flops, losses, scratch["heldout_loss"]) / float(scratch["train_flops"])


def _masks(record: Record) -> str:
    """The mask of the first phase in words: confirmed are the paper's default and scratch."""
    names = ("strategy", "size", "ratio")
    strategy, side, ratio = (str(record.params[f"mask.{name}"]).split(" -> ")[0] for name in names)
    return "-" if strategy == "none" else f"{side}x{side} blocks, {percent(float(ratio))}"


def markdown(params: Params, trials: pd.DataFrame, confirmed: pd.DataFrame, best: str) -> str:
    """The page: the best configuration, how it stands with other seeds, the best trials, the figure.

    Args:
        params: the settings.
        trials: what `search.trials_frame` returns.
        confirmed: what `confirmation` returns.
        best: the text of `best.yaml`.
    """
    complete = trials[trials["state"] == "complete"].sort_values("heldout_loss")
    shown = complete.head(SHOWN)[["trial", "masks", "share", "batch_size", "lr", "heldout_loss"]]
    return (
        "\n\n".join(
            [
                "# The search for a pre-training",
                f"{summary(params, trials)} The best:",
                f"```yaml\n{best.strip()}\n```",
                "## With other seeds",
                verdict(confirmed),
                confirmed_table(confirmed),
                caution(params, confirmed),
                "## The best trials",
                shown.to_markdown(index=False, floatfmt=".4g"),
                f"![trials](trials.png)\n\n{CAPTION}",
            ]
        )
        + "\n"
    )


def summary(params: Params, trials: pd.DataFrame) -> str:
    """How much was searched."""
    settings, pruned = params.search, int((trials["state"] != "complete").sum())
    return (
        f"{len(trials)} trials of {si(settings.train_flops, 'FLOPs')} each, all with seed {settings.seed}; "
        f"pruned, after their masked phases: {pruned}."
    )


def trial_columns(trials: pd.DataFrame) -> list[Column]:
    """All trials as a table, the best first, pruned ones last."""
    trials = trials.sort_values(["state", "heldout_loss"])
    return [
        Column(title, [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values], values)
        for key, title in TITLES.items()
        for values in [trials[key].tolist()]
    ]


def verdict(confirmed: pd.DataFrame) -> str:
    """How far the best of the search is ahead, seed for seed, with seeds that it was not chosen by."""
    best = confirmed["arm"].iloc[0]
    return " ".join(_compared(confirmed, best, other) for other in ("scratch", "paper"))


def _compared(confirmed: pd.DataFrame, best: str, other: str) -> str:
    losses = confirmed.pivot(index="seed", columns="arm", values="heldout_loss")
    shares = losses[best] / losses[other]
    low, high = interval(shares.tolist())
    row = {LOSS: shares.mean(), f"{LOSS}_low": low, f"{LOSS}_high": high, "seeds": len(shares)}
    change, ends = mean_and_interval(row, LOSS)
    name = {"scratch": "training from scratch", "paper": "the paper's default"}[other]
    return (
        f"The held-out loss of `{best}` against that of {name}: {change}{f' ({ends})' if ends else ''}, lower with "
        f"{(shares < 1).sum()} of {len(shares)} seeds."
    )


def arms_table(confirmed: pd.DataFrame) -> pd.DataFrame:
    """One row an arm: means, and ranges over the seeds where there are several."""
    metric = distance_metric(confirmed)
    columns = {"heldout_loss": "held-out loss", metric: metric, "kid": "KID"}
    rows = []
    for arm, runs in confirmed.groupby("arm", sort=False):
        row: dict[str, Any] = {"arm": f"`{arm}`", "masks": runs["masks"].iloc[0]}
        row |= {title: _mean_and_range(runs[column]) for column, title in columns.items()}
        rows.append(row | {"compute to scratch's loss": _share_and_range(runs["compute_to_target"])})
    return pd.DataFrame(rows)


def confirmed_table(confirmed: pd.DataFrame) -> str:
    """`arms_table` in Markdown."""
    return arms_table(confirmed).to_markdown(index=False, disable_numparse=True)


def _mean_and_range(values: pd.Series) -> str:
    mean = four_digits(values.mean())
    return mean if len(values) == 1 else f"{mean} ({four_digits(values.min())} to {four_digits(values.max())})"


def _share_and_range(shares: pd.Series) -> str:
    """`75 % (73 % to 77 %)`, or with how many seeds the loss was reached."""
    if math.isinf(shares.max()):
        return f"{np.isfinite(shares).sum()} of {len(shares)} seeds"
    span = "" if shares.min() == shares.max() else f" ({percent(shares.min())} to {percent(shares.max())})"
    return f"{percent(shares.mean())}{span}"


def caution(params: Params, confirmed: pd.DataFrame) -> str:
    """What these numbers cannot show."""
    seeds = sorted(confirmed["seed"].unique())
    metric = distance_metric(confirmed)
    many = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})" if len(seeds) > 1 else f"One seed ({seeds[0]})"
    sentence = (
        f"{many} an arm, none of them the search's: a small difference may be chance. Each seed measures the held-out "
        "loss with noise of its own, so arms compare seed for seed, and not with the losses of the search. All of it "
        f"holds at {si(params.search.train_flops, 'FLOPs')} and says little about much longer training"
    )
    if metric != "fid":
        sentence += f"; `{metric}` is a stand-in, not FID"
    if len(seeds) > 1:
        sentence += ". The table has means over the seeds, in parentheses the lowest and the highest"
    return f"{sentence}."


def read_table(path: Path, stage: str) -> pd.DataFrame:
    """A table that `stage` writes.

    Raises:
        MaskDMError: it is missing, or is none.
    """
    with reading(path, f"the stage {stage} writes it"):
        return pd.read_csv(path)
