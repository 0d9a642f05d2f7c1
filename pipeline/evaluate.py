"""DVC stage `evaluate@<arm>`: samples of every snapshot of an arm against real images."""

import sys

from maskdm.engine.judge import run_stage
from maskdm.engine.project import Project, chosen_key
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.processes import started_processes


def main() -> None:
    """Judge the arm's snapshots, write `runs/evaluate/<arm>/` and `records/evaluate/<arm>.json`."""
    with exit_with_one_line(), started_processes() as processes:
        project = Project.open(processes)
        run_stage(project, chosen_key(sys.argv, project.params.arms))


if __name__ == "__main__":
    main()
