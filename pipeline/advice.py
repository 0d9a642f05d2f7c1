"""DVC stage `advice` of the study: does `maskdm advise` order the masks as they ended when they were trained?"""

from dataclasses import asdict

import pandas as pd

from maskdm.engine.agreement import STUDY_PART, agreement
from maskdm.engine.project import Project
from maskdm.runtime.errors import MaskDMError, exit_with_one_line
from maskdm.runtime.files import write_csv
from maskdm.runtime.paths import STUDY_REPORTS
from maskdm.runtime.processes import ALONE

TABLE = STUDY_REPORTS / "advice.csv"


def main() -> None:
    """Compare both orders and write the table."""
    with exit_with_one_line():
        project = Project.open(ALONE)
        data = project.data
        found = agreement(project.params, project.recipe, data.train, data.info["sha256"])
        if found is None:
            raise MaskDMError(
                f"records/study/{STUDY_PART}.jsonl: no records of three masks of these images and tokens; "
                f"`python -m pipeline.study {STUDY_PART}` makes them"
            )
        write_csv(TABLE, pd.DataFrame([asdict(found)]))


if __name__ == "__main__":
    main()
