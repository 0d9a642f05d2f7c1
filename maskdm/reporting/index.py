"""`reports/index.html`: the default comparison, its search and the study's budgets as one file that opens from disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from maskdm.config.params import Params
from maskdm.config.reading import flat
from maskdm.config.study import Part, load_study
from maskdm.reporting import budgets, page, pictures, provenance, search_page, web
from maskdm.reporting.analysed import Analysed
from maskdm.reporting.analysis import Records, ordered_arms
from maskdm.reporting.page import LOSS
from maskdm.reporting.report import (
    PANEL,
    WRITTEN,
    Default,
    analyse_study,
    open_default,
    read_masks,
)
from maskdm.runtime.files import reading, write_text
from maskdm.runtime.paths import INDEX, ROOT, SEARCH_REPORTS, STUDY, STUDY_STEP_TIME, samples_file, stage_folder
from maskdm.runtime.units import percent
from maskdm.tracking.records import read_records, read_step_times

FIGURES = {  # of the best arm, below the answer: measure -> what it is
    "compute_to_target": "of `{baseline}`'s compute for its final held-out loss",
    LOSS: "held-out loss at equal compute",
    "seconds_to_target": "of `{baseline}`'s training time for its final held-out loss",
}


@dataclass(frozen=True)
class Searched:
    """What the stages of the search left."""

    trials: pd.DataFrame
    importances: pd.DataFrame
    confirmed: pd.DataFrame
    records: Records


def write_index() -> Path:
    """Write the page; returns its path.

    The study's budgets are shown if `records/study` has them.

    Raises:
        MaskDMError: a file is missing or damaged, or does not fit the others.
    """
    opened = open_default()
    params = opened.found.params
    study = read_records(ROOT, ("study",))
    view = view_of(
        opened,
        read_study(params, opened.found.data, study),
        study,
        read_search(),
        read_masks(params, opened.images),
        read_grids(params),
    )
    write_text(INDEX, web.render(view))
    return INDEX


def read_study(params: Params, data: Mapping[str, Any], study: Records) -> list[Analysed]:
    """The parts of the study that were run, and timed, with the data, network and recipe that the project has now.

    Args:
        params: of the default comparison.
        data: of its records.
        study: the records of all parts; a clone has those of the project's authors.

    Raises:
        MaskDMError: a file is damaged, or does not fit the others.
    """
    if not study or not STUDY.is_file() or not STUDY_STEP_TIME.is_file():
        return []
    asked = load_study(STUDY)
    timed = read_step_times(STUDY_STEP_TIME).seconds
    own = [
        name
        for name, part in asked.parts.items()
        if _is_of(name, part, params, data, study) and all(f"{name}/{arm}" in timed for arm in part.arms)
    ]
    return analyse_study(params, asked, own)


def _is_of(name: str, part: Part, params: Params, data: Mapping[str, Any], study: Records) -> bool:
    """Whether the records of a part are of these data and settings."""
    model = (part.model or params.model).model_dump(mode="json")
    expected = flat({"model": model, "recipe": part.recipe or params.recipe})
    own = [record for record, _ in study if Path(record.key).parent == Path(name)]
    return all(
        record.data["sha256"] == data["sha256"]
        and all(record.params.get(key, value) == value for key, value in expected.items())
        for record in own
    )


def read_search() -> Searched:
    """The tables and records of the search.

    Raises:
        MaskDMError: a table is missing or damaged.
    """
    trials, importances, confirmed = (
        search_page.read_table(SEARCH_REPORTS / f"{name}.csv", "search_report")
        for name in ("trials", "importance", "confirmation")
    )
    return Searched(trials, importances, confirmed, read_records(ROOT, ("search",)))


def read_grids(params: Params) -> dict[tuple[str, int, float], np.ndarray]:
    """The samples by arm, seed and share of the budget.

    Trials that were evaluated before the others were kept have those of the last snapshot alone.

    Raises:
        MaskDMError: a trial has no samples, or they are damaged.
    """
    found = {}
    for arm in ordered_arms(params):
        for seed in params.seeds:
            for share in params.budget.snapshots:
                path = stage_folder("evaluate", arm, seed) / samples_file(share)
                if share < 1 and not path.is_file():
                    continue
                with reading(path, WRITTEN):
                    found[arm, seed, share] = np.load(path)[:PANEL]
    return found


def view_of(
    opened: Default,
    parts: Sequence[Analysed],
    study: Records,
    searched: Searched,
    masks: Mapping[str, np.ndarray],
    grids: Mapping[tuple[str, int, float], np.ndarray],
) -> dict[str, Any]:
    """Everything that the template shows, in words, and under `data` what its script draws."""
    found, params, dataset = opened.found, opened.found.params, opened.images.info
    arms = web.arms(found)
    gained = budgets.most_measured(budgets.gains([found, *parts]))
    shown = set(gained["comparison"]) if len(gained) else set()
    uris = pictures.grids({**grids, None: opened.images.heldout[:PANEL]})
    real = uris.pop(None)
    shares = sorted({share for _, _, share in uris})
    measures = {*found.arms, *opened.reference["floor"]}
    return {
        "title": f"Does masked pre-training pay on {found.images}?",
        "answer": page.headline(params, found.arms, found.images),
        "figures": _figures(params, found.arms),
        "baseline": params.baseline,
        "metric": found.metric,
        "controls": params.controls,
        "arms": {arm["name"]: arm for arm in arms},
        "results": page.result_columns(params, found.arms, found.metric),
        "changes": web.changes(found),
        "standing": page.standing(found.arms, params.baseline, found.metric),
        "details": page.details_columns(params, found.arms, found.metric),
        "floor": page.floor(opened.reference, found.metric, found.measured_with["samples"]),
        "captions": {name: page.caption(name, params) for name in ("curves", "samples", "masks")},
        "budgets": {"columns": budgets.columns(gained), "finding": budgets.finding(gained)} if shown else None,
        "masks": {title: pictures.strip(images) for title, images in masks.items()},
        "shares": shares,
        "seeds": params.seeds,
        "search": _search(params, searched),
        "compared": page.compared(params, opened.recipe, dataset, opened.num_parameters),
        "definitions": page.definitions(params, found.metric, opened.times, found.measured_with, measures),
        "identity": _identity(opened),
        "sources": provenance.sources(opened, [part for part in parts if part.name in shown], study, searched.records),
        "data": {
            "arms": arms,
            "curves": web.curves(found),
            "budgets": web.budgets(gained, found) if shown else None,
            "search": web.search(searched.trials, params.search.train_flops),
            "samples": web.samples(found, uris, real, shares),
        },
    }


def _figures(params: Params, summary: pd.DataFrame) -> list[dict[str, str]]:
    """The best arm in three numbers."""
    best = page.best_arm(params, summary)
    if best is None:
        return []
    parts = {measure: page.mean_and_interval(best, measure, seeds=True) for measure in FIGURES}
    return [
        {"number": text, "interval": inside, "what": FIGURES[measure].format(baseline=params.baseline)}
        for measure, (text, inside) in parts.items()
    ]


def _search(params: Params, searched: Searched) -> dict[str, Any]:
    """What the search came to."""
    importances = page.rows_of(searched.importances)
    return {
        "summary": search_page.summary(params, searched.trials),
        "verdict": search_page.verdict(searched.confirmed),
        "confirmed": search_page.confirmed_table(searched.confirmed),
        "caution": search_page.caution(params, searched.confirmed),
        "importances": [row | {"text": percent(row["importance"])} for row in importances],
        "columns": search_page.trial_columns(searched.trials),
    }


def _identity(opened: Default) -> dict[str, str]:
    """What all numbers of the comparison hang on."""
    params, dataset = opened.found.params, opened.images.info
    return {
        "data": f"{params.data.title}, SHA-256 `{dataset['sha256']}`",
        "measured with": page.setup(opened.found.measured_with),
        "recipe": f"`{params.recipe}`",
        "seeds": ", ".join(map(str, params.seeds)),
        "step times": opened.times.machine,
    }
