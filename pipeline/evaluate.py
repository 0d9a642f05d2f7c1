"""DVC stage `evaluate@<arm>`: samples of every snapshot of an arm against real images.

A snapshot's row is kept in the work folder as soon as it is known, so that a kill costs one snapshot at most. Several
processes draw and look at a share of the samples each; the main one measures, holds the work folder and writes.
"""

import sys
from collections.abc import Callable
from typing import Any

from maskdm.engine.judge import run_stage
from maskdm.engine.project import Project, chosen_key
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.processes import started_processes

GRID_SIDE = 8  # samples a side of the grid that is kept

Row = dict[str, Any]
LogHistory = Callable[[list[Row]], None]


def main() -> None:
    """Judge the arm's snapshots, write `runs/evaluate/<arm>/` and `records/evaluate/<arm>.json`."""
    with exit_with_one_line(), started_processes() as processes:
        project = Project.open(processes)
        run_stage(project, chosen_key(sys.argv, project.params.arms))


if __name__ == "__main__":
    main()
