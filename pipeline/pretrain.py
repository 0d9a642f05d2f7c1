"""DVC stage `pretrain@<key>`: the masked phases of one entry of `pretrain`, from freshly drawn weights.

An entry without phases writes the drawn weights themselves, so that training from scratch starts from the same ones.
"""

import sys

from maskdm.engine.project import Project, chosen_key, initial_network
from maskdm.engine.train import run_stage
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.processes import started_processes


def main() -> None:
    """Read the settings, train, write `runs/pretrain/<key>/` and `records/pretrain/<key>.json`."""
    with exit_with_one_line(), started_processes() as processes:
        project = Project.open(processes)
        key = chosen_key(sys.argv, project.params.pretrain)
        arm = next(name for name, arm in project.params.arms.items() if arm.pretrain == key)
        network = initial_network(project.params, project.data.info["num_classes"]).to(project.device)
        run_stage(project, "pretrain", key, arm, project.plans(key), network)


if __name__ == "__main__":
    main()
