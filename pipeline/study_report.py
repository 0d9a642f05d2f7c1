"""DVC stage `study_report`: `reports/study.md`, its tables and figures, of the parts that were run."""

import pandas as pd
from matplotlib.figure import Figure

from maskdm import figures, search_report, study_figures, study_report
from maskdm.analysis import Records, distance_metric
from maskdm.config import load_block
from maskdm.errors import exit_with_one_line
from maskdm.files import write_csv, write_text
from maskdm.records import StepTimes, read_records, read_step_times
from maskdm.study import Part, Parts
from maskdm.study_analysis import curves, summary, trials
from pipeline.paths import ROOT, STUDY, STUDY_REPORTS, STUDY_STEP_TIME

REPORT = ROOT / "reports" / "study.md"


def main() -> None:
    """Write the report."""
    with exit_with_one_line():
        parts, records = load_block(Parts, "parts", STUDY).root, read_records(ROOT, ("study",))
        times = read_step_times(STUDY_STEP_TIME)
        done = {name: part for name, part in parts.items() if is_complete(name, part, records)}
        tables = {name: trials(name, part, records, times) for name, part in done.items()}
        written = [write_part(name, part, tables[name], records, times) for name, part in done.items()]
        written += [study_report.agreement_answer(done, tables)] if done else []
        others = ((STUDY_REPORTS / file, write) for file, write in OTHERS)
        written += [write(pd.read_csv(path)) for path, write in others if path.is_file()]
        page = [
            study_report.head(times),
            study_report.in_short([text.in_short for text in written]),
            *(text.section for text in written),
            study_report.missing([name for name in parts if name not in done]),
        ]
        write_text(REPORT, "\n\n".join(filter(None, page)) + "\n")


def is_complete(name: str, part: Part, records: Records) -> bool:
    """Whether every trial of the part has its record."""
    known = {record.key for record, _ in records}
    return all(f"{name}/{arm}-{seed}" in known for arm in part.arms for seed in part.seeds)


def write_part(name: str, part: Part, table: pd.DataFrame, records: Records, times: StepTimes) -> study_report.Answer:
    """Write the tables and figures of a part; returns what the report says of it."""
    measured, means = curves(name, part, records, times), summary(table)
    for suffix, frame in (("", table), ("_summary", means), ("_curves", measured)):
        write_csv(STUDY_REPORTS / f"{name}{suffix}.csv", frame)
    drawn = draw(name, part, measured, table, means)
    for stem, figure in drawn.items():
        figures.save(figure, STUDY_REPORTS / stem)
    metric = next(distance_metric(record.summary) for record, _ in records)
    return study_report.answer(name, part, means, metric, list(drawn))


def draw(name: str, part: Part, measured: pd.DataFrame, table: pd.DataFrame, means: pd.DataFrame) -> dict[str, Figure]:
    """The figures of a part by file name; curves where samples were judged along the way."""
    with figures.style():
        drawn = (
            {f"{name}_curves": study_figures.mean_curves(measured, part.baseline)} if len(part.snapshots) > 1 else {}
        )
        return drawn | {f"{name}_against": study_figures.against_baseline(means, table, part.baseline)}


def write_throughput(table: pd.DataFrame) -> study_report.Answer:
    """Draw the measured throughput; returns what the report says of it."""
    with figures.style():
        figures.save(study_figures.throughput(table), STUDY_REPORTS / "throughput")
    return study_report.throughput_answer(table)


def write_search(confirmed: pd.DataFrame) -> study_report.Answer:
    """What the report says of the large search, which has a page of its own."""
    return study_report.search_answer(search_report.verdict(confirmed), search_report.arms_table(confirmed))


# Tables of other stages, and what writes their sections.
OTHERS = (
    ("throughput.csv", write_throughput),
    ("swiss_roll.csv", study_report.swiss_roll_answer),
    ("search/confirmation.csv", write_search),
)


if __name__ == "__main__":
    main()
