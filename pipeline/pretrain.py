"""DVC stage `pretrain@<key>`: the masked phases of one entry of `pretrain`, from freshly drawn weights.

An entry without phases writes the drawn weights themselves, so that training from scratch starts from the same ones.
"""

import sys

import torch

from maskdm.compute import build_network
from maskdm.config import Params
from maskdm.errors import exit_with_one_line
from maskdm.processes import started_processes
from maskdm.uvit import UViT
from pipeline.common import Project, chosen_key
from pipeline.training import run_stage


def main() -> None:
    """Read the settings, train, write `runs/pretrain/<key>/` and `records/pretrain/<key>.json`."""
    with exit_with_one_line(), started_processes() as processes:
        project = Project.open(processes)
        key = chosen_key(sys.argv, project.params.pretrain)
        arm = next(name for name, arm in project.params.arms.items() if arm.pretrain == key)
        network = initial_network(project.params, project.data.info["num_classes"]).to(project.device)
        run_stage(project, "pretrain", key, arm, project.plans(key), network)


def initial_network(params: Params, num_classes: int | None) -> UViT:
    """The network with weights drawn from `params.seed`: the same for all arms, on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        return build_network(params.model, params.data, num_classes)


if __name__ == "__main__":
    main()
