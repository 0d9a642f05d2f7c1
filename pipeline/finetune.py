"""DVC stage `finetune@<arm>`: all tokens visible, from the arm's pre-trained weights, with the rest of its budget."""

import sys

from maskdm.checkpoint import load_snapshot
from maskdm.compute import plan_finetune
from maskdm.errors import exit_with_one_line
from maskdm.processes import started_processes
from pipeline.common import Project, chosen_key
from pipeline.paths import weights_folder
from pipeline.training import run_stage


def main() -> None:
    """Read the settings and the weights, train, write `runs/finetune/<arm>/` and `records/finetune/<arm>.json`."""
    with exit_with_one_line(), started_processes() as processes:
        project = Project.open(processes)
        arm = chosen_key(sys.argv, project.params.arms)
        plan = plan_finetune(project.params, project.recipe, arm)
        network = load_snapshot(weights_folder("pretrain", project.params.arms[arm].pretrain), project.device)
        run_stage(project, "finetune", arm, arm, (plan,), network)


if __name__ == "__main__":
    main()
