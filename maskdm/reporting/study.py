"""The tables and figures of a part of the study, and what the page says of it."""

import pandas as pd
from matplotlib.figure import Figure

from maskdm.config.study import Part
from maskdm.reporting import figures, search_page, study_figures, study_page
from maskdm.reporting.analysis import Records
from maskdm.reporting.study_analysis import curves, summary
from maskdm.runtime.files import write_csv
from maskdm.runtime.paths import STUDY_REPORTS
from maskdm.tracking.records import StepTimes, distance_metric


def is_complete(name: str, part: Part, records: Records) -> bool:
    """Whether every trial of the part has its record."""
    known = {record.key for record, _ in records}
    return all(f"{name}/{arm}-{seed}" in known for arm in part.arms for seed in part.seeds)


def write_part(name: str, part: Part, table: pd.DataFrame, records: Records, times: StepTimes) -> study_page.Answer:
    """Write the tables and figures of a part; returns what the report says of it."""
    measured, means = curves(name, part, records, times), summary(table)
    for suffix, frame in (("", table), ("_summary", means), ("_curves", measured)):
        write_csv(STUDY_REPORTS / f"{name}{suffix}.csv", frame)
    drawn = draw(name, part, measured, table, means)
    for stem, figure in drawn.items():
        figures.save(figure, STUDY_REPORTS / stem)
    metric = next(distance_metric(record.summary) for record, _ in records)
    return study_page.answer(name, part, means, metric, list(drawn))


def draw(name: str, part: Part, measured: pd.DataFrame, table: pd.DataFrame, means: pd.DataFrame) -> dict[str, Figure]:
    """The figures of a part by file name; curves where samples were judged along the way."""
    with figures.style():
        drawn = (
            {f"{name}_curves": study_figures.mean_curves(measured, part.baseline)} if len(part.snapshots) > 1 else {}
        )
        return drawn | {f"{name}_against": study_figures.against_baseline(means, table, part.baseline)}


def write_throughput(table: pd.DataFrame) -> study_page.Answer:
    """Draw the measured throughput; returns what the report says of it."""
    with figures.style():
        figures.save(study_figures.throughput(table), STUDY_REPORTS / "throughput")
    return study_page.throughput_answer(table)


def write_search(confirmed: pd.DataFrame) -> study_page.Answer:
    """What the report says of the large search, which has a page of its own."""
    return study_page.search_answer(search_page.verdict(confirmed), search_page.arms_table(confirmed))


# Tables of other stages, and what writes their sections.
OTHERS = (
    ("throughput.csv", write_throughput),
    ("swiss_roll.csv", study_page.swiss_roll_answer),
    ("search/confirmation.csv", write_search),
)
