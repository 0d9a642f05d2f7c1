"""DVC stage `finetune@<arm>`: all tokens visible, from the arm's pre-training, with the rest of its budget."""

import sys

from maskdm.engine.project import Project, chosen_key
from maskdm.engine.train import run_stage
from maskdm.runtime.errors import MaskDMError, exit_with_one_line
from maskdm.runtime.paths import state_file, weights_folder
from maskdm.runtime.processes import started_processes
from maskdm.training.checkpoint import load_checkpoint, load_snapshot
from maskdm.training.plan import plan_finetune


def main() -> None:
    """Read the settings and the weights, train, write `runs/finetune/<arm>/` and `records/finetune/<arm>.json`."""
    with exit_with_one_line(), started_processes() as processes:
        project = Project.open(processes)
        arm = chosen_key(sys.argv, project.params.arms)
        plan, key = plan_finetune(project.params, project.recipe, arm), project.params.arms[arm].pretrain
        network = load_snapshot(weights_folder("pretrain", key), project.device)
        before = load_checkpoint(state_file(key), project.device) if plan.goes_on else None
        if plan.goes_on and before is None:
            raise MaskDMError(f"{state_file(key)}: no such file; `dvc repro pretrain@{key}` writes it")
        run_stage(project, "finetune", arm, arm, (plan,), network, before)


if __name__ == "__main__":
    main()
