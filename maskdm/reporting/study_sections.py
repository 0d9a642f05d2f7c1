"""What the study's page says beside its comparisons: do the seeds agree, how fast is a step, Figure 1, the search."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from maskdm.config.params import Params
from maskdm.config.study import training_command
from maskdm.reporting import search_page
from maskdm.reporting.analysis import CONFIDENCE, FLOOR, rank_agreement
from maskdm.reporting.page import NOTHING, Answer, answer, listed, p_value, rows_of, table
from maskdm.runtime.units import percent, si

MADE = """\
`make study` makes this page from [`study/params.yaml`](../study/params.yaml), `params.yaml` and the records in \
`records/study/`. Within a part every arm spends the same training compute, masked phases counted in, with every seed.\
"""
HEADS = {
    "study": f"# When and how much masked pre-training pays\n\n{MADE}",
    "methods": f"# Methods that see fewer tokens, at equal compute\n\n{MADE} The network is what scratch \
was tuned to. For each objective the learning rate of every arm was chosen by equally many trials, scratch among them.",
    "methods-half": f"# The methods with half of the compute\n\n{MADE} The arms, seeds and \
settings are those of [the methods' page](methods.md), which takes from here with which budget an arm ends at \
scratch's final loss.",
}
AGAINST = """\
All arms of all parts against their baselines, with the same seed and at equal compute: a dot a seed, the mean, its \
95 % interval.\
"""
IN_SHORT = """\
Each row shows one arm: the one with the lowest held-out loss, among those clearly below scratch if there are any. \
Numbers are means over the seeds with 95 % intervals. Where the interval of the loss holds 0, nothing clear is gained. \
A control sees all tokens: what it gains is not the mask's. The sections below have all arms.\
"""
LOOKS = {"pretrained": "pre-trained", "steps": "scratch, equal steps", "compute": "scratch, equal compute"}


def missing(names: Sequence[str]) -> str:
    """What has not been run yet."""
    commands = "\n".join(f"- `{training_command(name)}`" for name in names)
    return f"## Not run yet\n\n{commands}" if names else ""


def agreement_answer(parts: Mapping[str, Params], tables: Mapping[str, pd.DataFrame]) -> Answer:
    """Whether another seed would rank the arms of each part alike.

    Args:
        parts: settings by name.
        tables: what `analysis.trials` returns, by the same names.
    """
    agreed = {name: rank_agreement(tables[name], "heldout_loss") for name in parts}
    shown = {
        "part": list(parts),
        "compute an arm": [si(part.budget.train_flops, "FLOPs") for part in parts.values()],
        "arms": [str(len(part.arms)) for part in parts.values()],
        "seeds": [str(len(part.seeds)) for part in parts.values()],
        "by held-out loss": [_concordance(*agreed[name]) for name in parts],
        "by distance": [_concordance(*rank_agreement(tables[name], "distance")) for name in parts],
    }
    alike = [name for name, (_, chance) in agreed.items() if chance < 1 - CONFIDENCE]
    rest = [name for name, (_, chance) in agreed.items() if chance >= 1 - CONFIDENCE]
    unknown = [name for name, (_, chance) in agreed.items() if math.isnan(chance)]
    found = (
        f"By held-out loss more alike than chance (p < {1 - CONFIDENCE:.2g}) in {listed(alike, 'no part')}; "
        f"not in {listed(rest, 'any other')}."
        + (f" With one seed it is not known: {listed(unknown)}." if unknown else "")
    )
    section = [
        "Kendall's W is 1 where all seeds rank the arms alike; p is how often random rankings agree at least as much.",
        table(shown),
    ]
    return answer("Is the ranking of the arms the same with every seed?", found, section)


def throughput_answer(measured: pd.DataFrame) -> Answer:
    """Speed and memory of a training step by mask."""
    shown = {
        "mask": measured["arm"].tolist(),
        "tokens removed": [percent(ratio) for ratio in measured["effective_mask_ratio"]],
        "batch": [str(size) for size in measured["batch_size"]],
        "images/s": [f"{value:,.0f}" for value in measured["images_per_second"]],
        "tokens/s": [f"{value:,.0f}" for value in measured["tokens_per_second"]],
        "of the FLOP-ideal": [percent(value) for value in measured["of_flop_ideal"]],
        "memory": [si(value, "B") for value in measured["memory_bytes"]],
    }
    masked = measured[measured["effective_mask_ratio"] > 0]
    dense = measured.loc[measured["effective_mask_ratio"] == 0, "memory_bytes"].iloc[0]
    found = (
        f"Masked steps reach {_span(masked['of_flop_ideal'])} of the images/s that their FLOPs promise, in "
        f"{_span(masked['memory_bytes'] / dense)} of the memory of dense ones."
    )
    section = [
        "Steps were timed in turn, memory each in a process of its own. The FLOP-ideal: an image is as much faster as "
        "it has fewer FLOPs.",
        table(shown),
    ]
    return answer("How fast, and in how much memory, is a step with each mask?", found, section)


def swiss_roll_answer(measured: pd.DataFrame) -> Answer:
    """The paper's Figure 1 in numbers.

    Args:
        measured: `swiss_roll.csv`: `arm`, `seed`, `step` (on pairs), `train_flops`, `sliced_wasserstein`.
    """
    looks, seeds = equal_looks(measured), measured["seed"].nunique()
    shown = {
        title: [f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in looks[column]]
        for column, title in LOOKS.items()
    }
    last = {column: looks[column].iloc[-1][0] for column in LOOKS}
    floor = measured.loc[measured["arm"] == FLOOR, "sliced_wasserstein"].mean()
    found = (
        f"At the end the pre-trained network's distance is {percent(last['pretrained'] / last['steps'])} of scratch's "
        f"at equal steps, and {percent(last['pretrained'] / last['compute'])} at equal compute."
    )
    section = [
        "The paper: pre-trained on them, it is shaped into the roll in far fewer steps (Figure 1).",
        "![samples](study/swiss_roll.png)",
        "![distances](study/swiss_roll_distance.png)",
        f"Sliced Wasserstein distance, mean and range over {seeds} seeds; of as many true points: {floor:.3f}.",
        table({"steps on pairs": [str(int(step)) for step in looks["step"]]} | shown),
    ]
    return answer("Do single coordinates prepare a network for the Swiss roll?", found, section)


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


def search_answer(confirmed: pd.DataFrame) -> Answer:
    """What the large search found, with a link to its page."""
    section = [
        table({str(name): cells.tolist() for name, cells in search_page.arms_table(confirmed).items()}),
        "Its trials and figures: [study/search/search.md](study/search/search.md).",
    ]
    return answer("What does a search find?", search_page.verdict(confirmed), section)


def advice_answer(measured: pd.DataFrame) -> Answer:
    """How `maskdm advise` ranks the masks of the part `masks`, beside what they came to.

    Args:
        measured: `advice.csv`: one row, the numbers of `engine.agreement.Agreement`.
    """
    [row] = rows_of(measured)
    shown = {
        "context lost for the compute saved, the order of its table": row["by_saving"],
        "context lost alone": row["by_context"],
        "one half of the seeds, with the other half": row["of_halves"],
    }
    found = (
        f"Its order of {row['masks']} masks has a rank correlation of {row['by_saving']:+.2f} with their losses. "
        f"The two halves of the seeds have {row['of_halves']:+.2f} with each other."
    )
    section = [
        "`maskdm advise` looks at images alone and trains nothing: [how, and how far to trust it](../docs/advise.md).",
        table({"order": list(shown), "Spearman's rank correlation": [f"{value:+.2f}" for value in shown.values()]}),
        f"Of {row['pairs']} pairs of masks that remove about as much, the one that loses less context ends lower in "
        f"{percent(row['at_equal_ratio'])}.",
    ]
    return answer("Does `maskdm advise` order the masks as they ended?", found, section)


# Tables of other stages, and what makes their sections.
OTHERS = {
    "throughput.csv": throughput_answer,
    "advice.csv": advice_answer,
    "swiss_roll.csv": swiss_roll_answer,
    "search/confirmation.csv": search_answer,
}


def _span(shares: pd.Series) -> str:
    return f"{percent(shares.min())} to {percent(shares.max())}"


def _concordance(agreement: float, chance: float) -> str:
    """`W = 0.42 (p = 0.080)`."""
    if math.isnan(agreement):
        return NOTHING
    return f"W = {agreement:.2f} ({p_value(chance)})"
