"""DVC stages `report` and `study_report`: tables, figures and the answers, from settings, records and samples.

python -m pipeline.report [--study]
"""

import argparse

from maskdm.reporting.report import write_default, write_study
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.paths import ROOT
from maskdm.tracking import mlflow_store


def main() -> None:
    """Write `reports/report.md` and `reports/default/`, or `reports/study.md` and `reports/study/`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.report")
    parser.add_argument("--study", action="store_true", help="the study's page instead")
    study = parser.parse_args().study
    with exit_with_one_line():
        if study:
            write_study()
        else:
            mlflow_store.log_report(ROOT, write_default())


if __name__ == "__main__":
    main()
