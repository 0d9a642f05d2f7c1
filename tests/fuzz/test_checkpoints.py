"""Hostile checkpoints of a training of our own: it goes on from what is in them, or refuses them in one line."""

import copy
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.networks.uvit import UViT
from maskdm.runtime.errors import DivergedError
from maskdm.training.checkpoint import load_checkpoint, save_checkpoint
from maskdm.training.loop import PhaseTrainer, make_heldout_loss
from maskdm.training.objective import make_objective
from maskdm.training.plan import plan_pretrain
from tests.fuzz.harness import amounts, answer_of, fuzz, randoms
from tests.fuzz.test_weights import as_checkpoint

CPU = torch.device("cpu")


@amounts(400)
def test_checkpoints_of_a_training(
    examples: int, params: Params, recipe: Recipe, data: PreparedData, network: UViT, tmp_path: Path
) -> None:
    objective = make_objective(recipe.objective)
    heldout = make_heldout_loss(network, objective, data, 32, 0, CPU)
    plan = replace(
        plan_pretrain(params, recipe, "patch75")[0],
        steps=3,
        heldout_steps=(2, 3),
        snapshot_steps={},
        schedule_offset=0.0,
        schedule_steps=3,
    )

    def trainer() -> PhaseTrainer:
        return PhaseTrainer(copy.deepcopy(network), objective, data, plan, heldout, 0, tmp_path, lambda _: None)

    first = trainer()
    first.plan = replace(plan, steps=2)
    first.run()
    path = first.checkpoint_path
    state = load_checkpoint(path, CPU)
    assert answer_of(lambda: trainer().run()) == "taken"

    def check(random: Random) -> str:
        try:
            path.write_bytes(as_checkpoint(state, random))
        except Exception:  # it cannot be written
            return "not written"
        before = path.read_bytes()

        def go_on() -> None:
            try:
                trainer().run()
            except DivergedError:  # a number was changed, and the loss shows it
                assert path.read_bytes() == before, "the last good state stays"
                raise

        return answer_of(go_on)

    fuzz(examples, "checkpoints of a training", randoms(), check)
    save_checkpoint(path, state or {})
    assert answer_of(lambda: trainer().run()) == "taken"
