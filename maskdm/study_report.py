"""The text of the study's report: for every part its question, an answer by plain rules, and its table.

Everything here is a function of settings and frames: no file is read or written.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from maskdm.analysis import FLOOR, Row
from maskdm.records import StepTimes
from maskdm.study import Part
from maskdm.study_analysis import AGAINST, CONFIDENCE, rank_agreement
from maskdm.units import four_digits, percent, si

NOTHING = "-"
TO_TARGET = {"compute_to_target": "compute", "seconds_to_target": "seconds"}
LOOKS = {"pretrained": "pre-trained", "steps": "scratch, equal steps", "compute": "scratch, equal compute"}
HEAD = """\
# When and how much masked pre-training pays

`make study` makes this page from [`study/params.yaml`](../study/params.yaml), `params.yaml` and the records in \
`records/study/`. Within a part every arm spends the same training compute, masked phases counted in, with every \
seed. An arm is compared with the baseline **of the same seed** (the same first weights, order of images and held-out \
noise); intervals are 95 % percentile bootstrap intervals of the mean over the seeds. "Lower" and "higher" are said \
only where the interval leaves zero out. With so few seeds such intervals are narrow: of arms that do not differ, they \
call lower or higher about 24 % with three seeds, 20 % with four, 17 % with five and 14 % with six. So every part has \
a `control`, a mask that removes one token: how far it ends from the baseline is what chance does, and an arm counts \
for more than chance where it is clearly farther.\
"""
SECONDS = """\
Seconds are steps times seconds a step. One step of every phase of all arms followed on another, again and again, with \
a core or a GPU, as trials have one ({machine}): what else ran there slowed all of them alike. The spread is how far \
apart the middle half of a step's shares of a round lies: a few percent on a quiet machine.\
"""


@dataclass(frozen=True)
class Answer:
    """What the page says to one question."""

    in_short: str  # a line for the top of the page
    section: str


def answer(name: str, part: Part, summary: pd.DataFrame, metric: str, figures: list[str]) -> Answer:
    """The answer to the question of one part.

    Args:
        name: of the part.
        part: its settings.
        summary: what `study_analysis.summary` returns.
        metric: the name of the distance.
        figures: names of those that lie in `study/` beside the report, as PNG and SVG.
    """
    section = [
        f"The paper: {part.paper}",
        f"{si(part.train_flops, 'FLOPs')} an arm, seeds {', '.join(map(str, part.seeds))}; part `{name}`.",
        *(f"![{figure}](study/{figure}.png)" for figure in figures),
        details(part, summary),
        _table(summary, part.baseline, metric),
        f"Trials in numbers: [study/{name}.csv](study/{name}.csv).",
    ]
    return _answer(part.question, headline(part, summary), section)


def head(times: StepTimes) -> str:
    """The top of the page: what is compared with what, and what its seconds are."""
    return f"{HEAD} {SECONDS.format(machine=times.machine)}"


def in_short(answers: Sequence[str]) -> str:
    """The top of the page."""
    return "\n".join(f"- {text}" for text in answers)


def headline(part: Part, summary: pd.DataFrame) -> str:
    """Which arms are clearly better or worse than the baseline, and the best of them in numbers."""
    rows = _others(part, summary)
    paid = [row["arm"] for row in rows if row[f"heldout_loss{AGAINST}_high"] < 1]
    lost = [row["arm"] for row in rows if row[f"heldout_loss{AGAINST}_low"] > 1]
    rest = "" if len(paid) + len(lost) == len(rows) else "; the others are level with it"
    found = (
        f"{_listed(paid, 'No arm')} ended with a lower held-out loss than `{part.baseline}`, {_listed(lost)} with a "
        f"higher one{rest}."
    )
    if not paid:  # which of them is the lowest is chance
        return found
    best = min(rows, key=lambda row: float(row[f"heldout_loss{AGAINST}"]))
    return f"{found} The lowest, {_line(best, part.baseline)}."


def details(part: Part, summary: pd.DataFrame) -> str:
    """One line an arm: what changed against the baseline, and whether chance can be ruled out."""
    return "\n".join(f"- {_line(row, part.baseline)}." for row in _others(part, summary))


def _others(part: Part, summary: pd.DataFrame) -> list[Row]:
    return [row for row in _rows(summary) if row["arm"] != part.baseline]


def missing(names: Sequence[str]) -> str:
    """What has not been run yet."""
    commands = "\n".join(f"- `dvc repro study/dvc.yaml:part@{name}`" for name in names)
    return f"## Not run yet\n\n{commands}" if names else ""


def agreement_answer(parts: Mapping[str, Part], tables: Mapping[str, pd.DataFrame]) -> Answer:
    """Whether another seed would rank the arms of each part alike.

    Args:
        parts: settings by name.
        tables: what `study_analysis.trials` returns, by the same names.
    """
    agreed = {name: rank_agreement(tables[name], "heldout_loss") for name in parts}
    shown = pd.DataFrame(
        {
            "part": list(parts),
            "compute an arm": [si(part.train_flops, "FLOPs") for part in parts.values()],
            "arms": [len(part.arms) for part in parts.values()],
            "seeds": [len(part.seeds) for part in parts.values()],
            "by held-out loss": [_concordance(*agreed[name]) for name in parts],
            "by distance": [_concordance(*rank_agreement(tables[name], "distance")) for name in parts],
        }
    )
    alike = [name for name, (_, chance) in agreed.items() if chance < 1 - CONFIDENCE]
    rest = [name for name, (_, chance) in agreed.items() if chance >= 1 - CONFIDENCE]
    unknown = [name for name, (_, chance) in agreed.items() if math.isnan(chance)]
    found = (
        f"By held-out loss more alike than chance (p < {1 - CONFIDENCE:.2g}) in {_listed(alike, 'no part')}; "
        f"not in {_listed(rest, 'any other')}."
        + (f" With one seed it is not known: {_listed(unknown)}." if unknown else "")
    )
    section = [
        "Kendall's W is 1 where every seed ranks the arms of a part alike; p is how often rankings drawn at random are "
        "at least as much alike. Arms that do not differ have no ranking to agree on, at any compute.",
        _markdown(shown),
    ]
    return _answer("Is the ranking of the arms the same with every seed?", found, section)


def throughput_answer(table: pd.DataFrame) -> Answer:
    """Speed and memory of a training step by mask."""
    shown = pd.DataFrame(
        {
            "mask": table["arm"],
            "tokens removed": [percent(ratio) for ratio in table["effective_mask_ratio"]],
            "batch": table["batch_size"],
            "images/s": [f"{value:,.0f}" for value in table["images_per_second"]],
            "tokens/s": [f"{value:,.0f}" for value in table["tokens_per_second"]],
            "of the FLOP-ideal": [percent(value) for value in table["of_flop_ideal"]],
            "memory": [si(value, "B") for value in table["memory_bytes"]],
        }
    )
    question = "How fast, and in how much memory, is a step with each mask?"
    masked = table[table["effective_mask_ratio"] > 0]
    dense = table.loc[table["effective_mask_ratio"] == 0, "memory_bytes"].iloc[0]
    found = (
        f"Masked steps reach {_span(masked['of_flop_ideal'])} of the images/s that their FLOPs promise, in "
        f"{_span(masked['memory_bytes'] / dense)} of the memory of dense ones."
    )
    section = [
        "Of steps timed in turn, as all seconds of this page; memory each in a process of its own. The FLOP-ideal is a "
        "masked image that is as much faster as it has fewer FLOPs.",
        "![throughput](study/throughput.png)",
        _markdown(shown),
    ]
    return _answer(question, found, section)


def swiss_roll_answer(measured: pd.DataFrame) -> Answer:
    """The paper's Figure 1 in numbers.

    Args:
        measured: `swiss_roll.csv`: `arm`, `seed`, `step` (on pairs), `train_flops`, `sliced_wasserstein`.
    """
    table, seeds = equal_looks(measured), measured["seed"].nunique()
    shown = {
        title: [f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in table[column]]
        for column, title in LOOKS.items()
    }
    last = {column: table[column].iloc[-1][0] for column in LOOKS}
    floor = measured.loc[measured["arm"] == FLOOR, "sliced_wasserstein"].mean()
    question = "Do single coordinates prepare a network for the Swiss roll?"
    found = (
        f"At the end the pre-trained network's distance is {percent(last['pretrained'] / last['steps'])} of scratch's "
        f"at equal steps, and {percent(last['pretrained'] / last['compute'])} at equal compute."
    )
    section = [
        "The paper: pre-trained on them, it is shaped into the roll in far fewer steps (Figure 1).",
        "![samples](study/swiss_roll.png)",
        "![distances](study/swiss_roll_distance.png)",
        f"Sliced Wasserstein distance, mean and range over {seeds} seeds; of as many true points: {floor:.3f}.",
        _markdown(pd.DataFrame({"steps on pairs": table["step"].astype(int).astype(str)} | shown)),
    ]
    return _answer(question, found, section)


def equal_looks(measured: pd.DataFrame) -> pd.DataFrame:
    """One row a look at the pre-trained network: `step`, and (mean, lowest, highest) distance for each of `LOOKS`."""
    scratch = measured[measured["arm"] == "scratch"]
    rows = []
    for (step, flops), looked in measured[measured["arm"] == "pretrained"].groupby(["step", "train_flops"]):
        nearest = scratch.iloc[int(np.abs(scratch["train_flops"].to_numpy() - flops).argmin())]["step"]
        found = {
            "pretrained": looked,
            "steps": scratch[scratch["step"] == step],
            "compute": scratch[scratch["step"] == nearest],
        }
        distances = {column: frame["sliced_wasserstein"] for column, frame in found.items()}
        rows.append({"step": step} | {name: (d.mean(), d.min(), d.max()) for name, d in distances.items()})
    return pd.DataFrame(rows)


def search_answer(verdict: str, arms: pd.DataFrame) -> Answer:
    """What the large search found, with a link to its page."""
    question = "What does a search find?"
    section = [
        _markdown(arms),
        "Its trials and figures: [study/search/search.md](study/search/search.md).",
    ]
    return _answer(question, verdict, section)


def _answer(question: str, found: str, section: Sequence[str]) -> Answer:
    return Answer(f"*{question}* {found}", "\n\n".join([f"## {question}", f"**{found}**", *section]))


def _rows(frame: pd.DataFrame) -> list[Row]:
    return [{str(column): value for column, value in row.items()} for row in frame.to_dict("records")]


def _line(row: Row, baseline: str) -> str:
    loss = _change(row, "heldout_loss")
    distance = _change(row, "distance")
    return f"`{row['arm']}`: held-out loss {loss}, distance {distance}; {_to_target(row, baseline)}"


def _change(row: Row, measure: str) -> str:
    """`2.1 % lower (1.8 to 2.4)`; without the word where the interval holds zero."""
    column = f"{measure}{AGAINST}"
    mean, low, high = (100 * (row[key] - 1) for key in (column, f"{column}_low", f"{column}_high"))
    if math.isnan(low):
        return f"{mean:+.1f} %"
    if low <= 0 <= high:
        return f"unchanged within chance ({mean:+.1f} %; {low:+.1f} to {high:+.1f})"
    ends = sorted((abs(low), abs(high)))
    return f"{abs(mean):.1f} % {'lower' if mean < 0 else 'higher'} ({ends[0]:.1f} to {ends[1]:.1f})"


def _to_target(row: Row, baseline: str) -> str:
    if math.isinf(row["compute_to_target"]):
        return f"`{baseline}`'s final loss reached with {_seeds_at_target(row)}"
    costs = [f"{_share(row, cost)} of its {noun}" for cost, noun in TO_TARGET.items()]
    return f"`{baseline}`'s final loss reached with {' and '.join(costs)}"


def _seeds_at_target(row: Row) -> str:
    return f"{row['seeds_at_target']} of {row['seeds']} seeds"


def _share(row: Row, measure: str) -> str:
    """`94 % (93 % to 95 %)`."""
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    span = "" if math.isnan(low) else f" ({percent(low)} to {percent(high)})"
    return f"{percent(row[measure])}{span}"


def _span(shares: pd.Series) -> str:
    return f"{percent(shares.min())} to {percent(shares.max())}"


def _table(summary: pd.DataFrame, baseline: str, metric: str) -> str:
    def cells(column: str, form: str) -> list[str]:
        return [_cell(row[column], form) for row in _rows(summary)]

    columns = {
        "arm": summary["arm"],
        "mask": summary["masks"].replace("", NOTHING),
        "effective": [_ratios(text) for text in summary["effective_mask_ratio"]],
        "share": cells("share", "percent"),
        "batch": summary["batch_size"].replace("", NOTHING),
        "held-out loss": cells("heldout_loss", "digits"),
        f"against {baseline}": [_signed(row, "heldout_loss") for row in _rows(summary)],
        "compute to target": [_cost(row, "compute_to_target") for row in _rows(summary)],
        "seconds to target": [_cost(row, "seconds_to_target") for row in _rows(summary)],
        metric: cells("distance", "digits"),
        f"{metric} against {baseline}": [_signed(row, "distance") for row in _rows(summary)],
        "kid": cells("kid", "digits"),
        "recall": cells("recall", "digits"),
        "images/s": cells("images_per_second", "count"),
        "peak memory": cells("peak_memory_bytes", "bytes"),
    }
    return _markdown(pd.DataFrame(columns))


def _cost(row: Row, measure: str) -> str:
    return _seeds_at_target(row) if math.isinf(row[measure]) else _cell(row[measure], "percent")


def _cell(value: float, form: str) -> str:
    if math.isnan(value):
        return NOTHING
    forms = {"percent": percent(value), "digits": four_digits(value), "count": f"{value:,.0f}", "bytes": si(value, "B")}
    return forms[form]


def _signed(row: Row, measure: str) -> str:
    column = f"{measure}{AGAINST}"
    mean, low, high = (100 * (row[key] - 1) for key in (column, f"{column}_low", f"{column}_high"))
    if mean == 0:
        return NOTHING
    return f"{mean:+.1f} %" if math.isnan(low) else f"{mean:+.1f} % ({low:+.1f} to {high:+.1f})"


def _ratios(text: str) -> str:
    return " -> ".join(percent(float(ratio)) for ratio in text.split(" -> "))


def _listed(names: list[str], nothing: str = "no arm") -> str:
    return ", ".join(f"`{name}`" for name in names) or nothing


def _concordance(agreement: float, chance: float) -> str:
    """`W = 0.42 (p = 0.08)`."""
    if math.isnan(agreement):
        return NOTHING
    return f"W = {agreement:.2f} ({'p < 0.001' if chance < 0.001 else f'p = {chance:.3f}'})"


def _markdown(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, disable_numparse=True, colalign=["left", *["right"] * (frame.shape[1] - 1)])
