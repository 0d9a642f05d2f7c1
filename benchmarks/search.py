"""What it costs to draw a trial without knowing those that may run beside it: the best loss found, and idle workers.

python -m benchmarks.search [--searches 100]

Searches of a loss that costs nothing: a forest fitted to the recorded trials of the study's search. `parallel` 1 knows
every trial before; "as they end" is what a search did that learned from whatever had ended, which depends on the speed
of its workers. Times of trials are drawn (a median of 1, a spread of a factor of 1.5), alike for all.
"""

import argparse
import heapq
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from sklearn.ensemble import RandomForestRegressor

from maskdm.config.comparison import Phase
from maskdm.config.masks import effective_mask_ratio
from maskdm.config.params import Search
from maskdm.config.reading import load_block
from maskdm.search import RANDOM_TRIALS, Attempt, Grid, run_trials, suggest

STUDY = Path("study/params.yaml")
TRIALS = Path("reports/study/search/trials.csv")
GRID: Grid = (8, 8)
KINDS = ("patch", "block2", "block4", "crop")
PARALLEL = (1, 2, 4, 8)
WORKERS = (2, 4, 8)
SPREAD = np.log(1.5)


class Surrogate:
    """The loss of a trial, by the recorded ones, with the scatter that a seed adds."""

    def __init__(self, table: pd.DataFrame, seed: int) -> None:
        complete = table[table["state"] == "complete"]
        columns = ["mask", "effective_mask_ratio", "phases", "share", "batch_size", "lr"]
        features = [self._features(*row) for row in complete[columns].to_numpy()]
        self._forest = RandomForestRegressor(50, random_state=0).fit(features, complete["heldout_loss"])
        self._random = np.random.default_rng(seed)

    def expected(self, kind: str, phases: tuple[Phase, ...]) -> float:
        """Without scatter."""
        ratio, share = effective_mask_ratio(phases[0].mask, GRID), sum(phase.share or 0.0 for phase in phases)
        first = phases[0]
        return float(
            self._forest.predict(
                [self._features(kind, ratio, len(phases), share, first.batch_size, first.override["lr"])]
            )[0]
        )

    def __call__(self, kind: str, phases: tuple[Phase, ...]) -> float:
        """What a training would come to."""
        return self.expected(kind, phases) * float(np.exp(0.004 * self._random.standard_normal()))

    @staticmethod
    def _features(kind: str, ratio: float, phases: int, share: float, batch_size: int, lr: float) -> list[float]:
        return [*(float(kind == known) for known in KINDS), ratio, phases, share, np.log(batch_size), np.log(lr)]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=100)
    searches = parser.parse_args().searches
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search, table = load_block(Search, "search", STUDY), pd.read_csv(TRIALS)
    rows = [
        {"drawn knowing": f"those {parallel} before"}
        | summary([found(search, table, parallel, seed) for seed in range(searches)])
        for parallel in PARALLEL
    ]
    rows += [
        {"drawn knowing": f"as they end, {workers} workers"}
        | summary([found_as_they_end(search, table, workers, s) for s in range(searches)])
        for workers in WORKERS
    ]
    print(pd.DataFrame(rows).to_markdown(index=False))
    idle = [
        {"workers": workers} | {f"parallel {p}": f"{idle_share(search.trials, workers, p):.0%}" for p in PARALLEL}
        for workers in WORKERS
    ]
    print(f"\nworkers idle, of all their time\n\n{pd.DataFrame(idle).to_markdown(index=False)}")


def found(search: Search, table: pd.DataFrame, parallel: int, seed: int) -> float:
    """The expected loss of the best trial of one search by `run_trials`."""
    loss = Surrogate(table, seed)
    study = optuna.create_study()
    for _ in range(search.trials):
        study.enqueue_trial({})
    expected: dict[int, float] = {}

    def objective(attempt: Attempt) -> float:
        expected[attempt.number] = loss.expected(attempt.trial.params["mask"], attempt.phases)
        return loss(attempt.trial.params["mask"], attempt.phases)

    run_trials(study, search.model_copy(update={"parallel": parallel}), GRID, seed, objective, nullcontext())
    return expected[study.best_trial.number]


def found_as_they_end(search: Search, table: pd.DataFrame, workers: int, seed: int) -> float:
    """The same of a search whose workers learn from whatever has ended."""
    loss, random = Surrogate(table, seed), np.random.default_rng([seed, 1])
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed))
    expected: dict[int, float] = {}
    running: list[tuple[float, int, optuna.Trial, float]] = []
    for number in range(search.trials):
        now = 0.0
        if len(running) == workers:
            now, _, ended, value = heapq.heappop(running)
            study.tell(ended, value)
        trial = study.ask()
        phases = suggest(trial, search.space, GRID)
        expected[number] = loss.expected(trial.params["mask"], phases)
        end = now + float(np.exp(SPREAD * random.standard_normal()))
        heapq.heappush(running, (end, number, trial, loss(trial.params["mask"], phases)))
    for _, _, ended, value in running:
        study.tell(ended, value)
    return expected[study.best_trial.number]


def idle_share(trials: int, workers: int, parallel: int, searches: int = 200) -> float:
    """The share of their time that workers wait for trials that the next one has to know of."""
    shares = []
    for seed in range(searches):
        took = np.exp(SPREAD * np.random.default_rng(seed).standard_normal(trials))
        free, ends = [0.0] * workers, list[float]()
        for number in range(trials):
            known = max(ends[: max(0, number - parallel + 1)], default=0.0)
            start = max(heapq.heappop(free), known)
            ends.append(start + took[number])
            heapq.heappush(free, ends[-1])
        shares.append(1 - took.sum() / (workers * max(ends)))
    return float(np.mean(shares))


def summary(losses: list[float]) -> dict[str, str]:
    """Mean with its standard error, and quartiles."""
    values = np.array(losses)
    quartiles = " ".join(f"{value:.5f}" for value in np.quantile(values, (0.25, 0.5, 0.75)))
    error = values.std(ddof=1) / np.sqrt(len(values))
    return {"best loss, mean": f"{values.mean():.5f} ± {error:.5f}", "quartiles": quartiles}


if __name__ == "__main__":
    main()
