"""DVC stage `study_report`: `reports/study.md`, its tables and figures, of the parts that were run."""

import pandas as pd

from maskdm.config.reading import load_block
from maskdm.config.study import Parts
from maskdm.reporting import study_page
from maskdm.reporting.study import OTHERS, is_complete, write_part
from maskdm.reporting.study_analysis import trials
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.files import write_text
from maskdm.runtime.paths import ROOT, STUDY, STUDY_REPORTS, STUDY_STEP_TIME
from maskdm.tracking.records import read_records, read_step_times

REPORT = ROOT / "reports" / "study.md"


def main() -> None:
    """Write the report."""
    with exit_with_one_line():
        parts, records = load_block(Parts, "parts", STUDY).root, read_records(ROOT, ("study",))
        times = read_step_times(STUDY_STEP_TIME)
        done = {name: part for name, part in parts.items() if is_complete(name, part, records)}
        tables = {name: trials(name, part, records, times) for name, part in done.items()}
        written = [write_part(name, part, tables[name], records, times) for name, part in done.items()]
        written += [study_page.agreement_answer(done, tables)] if done else []
        others = ((STUDY_REPORTS / file, write) for file, write in OTHERS)
        written += [write(pd.read_csv(path)) for path, write in others if path.is_file()]
        page = [
            study_page.head(times),
            study_page.in_short([text.in_short for text in written]),
            *(text.section for text in written),
            study_page.missing([name for name in parts if name not in done]),
        ]
        write_text(REPORT, "\n\n".join(filter(None, page)) + "\n")


if __name__ == "__main__":
    main()
