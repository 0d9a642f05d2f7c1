"""Does the comparison call arms that cannot be better what they are?

`python -m benchmarks.sceptic.run` trains the arms of `arms.py` on the prepared data of `params.yaml`, tries those that
are to be refused, and writes `reports/sceptic.md`. Arms that are trained already are not trained again (`runs/train/`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.sceptic.arms import ARMS, REFUSED, SEEDS, TRAIN_FLOPS, settings, slip_in
from maskdm.engine.project import Project
from maskdm.engine.single import train_alone
from maskdm.engine.workers import default_workers, run_all
from maskdm.reporting.analysis import interval
from maskdm.reporting.page import table
from maskdm.runtime.errors import MaskDMError, exit_with_one_line
from maskdm.runtime.files import write_text
from maskdm.runtime.paths import ROOT
from maskdm.runtime.processes import ALONE
from maskdm.runtime.progress import Work, WorkBar
from maskdm.runtime.units import si

CONTROL = "control"
PAGE = ROOT / "reports" / "sceptic.md"
HEAD = """\
# Arms that cannot be better

`python -m benchmarks.sceptic.run` makes this page. A comparison that can be trusted must not find a gain where there \
is none. So these arms are wrong on purpose: [`benchmarks/sceptic/`](../benchmarks/sceptic/arms.py).\
"""


@dataclass(frozen=True)
class Trial:
    """An arm with a seed."""

    arm: str
    seed: int


def train(trial: Trial) -> tuple[Trial, float]:
    """Train one, in a process of its own; returns its final held-out loss."""
    slip_in()
    project = replace(Project.open(ALONE), params=settings(ARMS))
    own = project.trial(trial.arm, trial.seed)
    _, record = train_alone(own, judged=False, name=f"sceptic-{trial.arm}")
    return trial, float(record.summary["heldout_loss"])


def refusal(name: str) -> str:
    """What the suite says to an arm whose cost is wrong: in its plan, or else before its first step."""
    project = replace(Project.open(ALONE), params=settings({name: REFUSED[name]}))
    try:
        train_alone(project.trial(name, SEEDS[0]), judged=False, name=f"sceptic-refused-{name}")
    except MaskDMError as error:
        return str(error)
    raise MaskDMError(f"benchmarks.sceptic: {name} was trained; it must be refused")


def changes(losses: dict[Trial, float], arm: str, other: str) -> list[float]:
    """Of the loss of an arm against another one with the same seed, %."""
    return [100 * (losses[Trial(arm, seed)] / losses[Trial(other, seed)] - 1) for seed in SEEDS]


def in_words(found: Sequence[float]) -> str:
    """The mean with its interval."""
    low, high = interval(found)
    return f"{math.fsum(found) / len(found):+.1f} % ({low:+.1f} to {high:+.1f} %)"


def verdict(found: Sequence[float]) -> str:
    """By the rule of all pages: whether the interval leaves out zero."""
    low, high = interval(found)
    return "lower" if high < 0 else "higher" if low > 0 else "not clearly different"


def write(losses: dict[Trial, float], refused: dict[str, str]) -> None:
    """Write the page."""
    others = [arm for arm in ARMS if arm != "scratch"]
    against = {arm: changes(losses, arm, CONTROL) for arm in others if arm != CONTROL}
    trained = {
        "arm": others,
        "what it is": [ARMS[arm][0] for arm in others],
        "held-out loss against scratch": [in_words(changes(losses, arm, "scratch")) for arm in others],
        "against `control`": [in_words(against[arm]) if arm in against else "-" for arm in others],
        "it is called": [verdict(against[arm]) if arm in against else "-" for arm in others],
    }
    wrong = [arm for arm in against if arm != "crop"]
    better = [arm for arm in wrong if verdict(against[arm]) == "lower"]
    answer = (
        f"**Of {len(wrong)} arms with masks that cannot help, {len(better) or 'none'} "
        f"end{'s' * (len(better) < 2)} clearly below the control{': ' * bool(better)}{', '.join(better)}. Crops as "
        f"they should be: {verdict(against['crop'])}. Both arms with a wrong cost are refused before they train.** "
        "Against scratch alone more arms are lower: at this budget the control's steps help without any mask. That is "
        "why arms have controls."
    )
    lines = [f"- {REFUSED[name][0]}:\n  `error: {line}`" for name, line in refused.items()]
    blocks = [
        HEAD,
        answer,
        table(trained),
        f"{si(TRAIN_FLOPS, 'FLOPs')} an arm, the settings of `params.yaml`, seeds {', '.join(map(str, SEEDS))}; 95 % "
        "Student's t intervals of the mean over the seeds, each against the same seed.",
        "## Wrong costs\n\n" + "\n".join(lines),
    ]
    write_text(PAGE, "\n\n".join(blocks) + "\n")


def main() -> None:
    """Train, refuse, write."""
    slip_in()
    refused = {name: refusal(name) for name in REFUSED}
    trials = [Trial(arm, seed) for seed in SEEDS for arm in ARMS]
    bar = WorkBar(f"{len(trials)} trials", Work([TRAIN_FLOPS] * len(trials)))
    write(dict(run_all(train, trials, default_workers(), unit="trial", bar=bar)), refused)


if __name__ == "__main__":
    with exit_with_one_line():
        main()
