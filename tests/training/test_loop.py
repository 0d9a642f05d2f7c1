import copy
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.networks.uvit import UViT
from maskdm.runtime.errors import MaskDMError
from maskdm.training.checkpoint import load_snapshot, network_sha256, save_checkpoint
from maskdm.training.loop import PhaseTrainer, Row, make_heldout_loss
from maskdm.training.objective import make_objective
from maskdm.training.optimizers import ema_decay
from maskdm.training.plan import PhasePlan, plan_finetune, plan_pretrain

MakeTrainer = Callable[..., PhaseTrainer]


@pytest.fixture
def plan(params: Params, recipe: Recipe) -> PhasePlan:
    """A masked phase of 12 steps, with a snapshot and held-out losses on the way."""
    return replace(
        plan_pretrain(params, recipe, "patch75")[0],
        steps=12,
        heldout_steps=(3, 6, 9, 12),
        snapshot_steps={6: 0.5},
        schedule_offset=0.0,
        schedule_steps=12,
    )


@pytest.fixture
def make_trainer(recipe: Recipe, data: PreparedData, plan: PhasePlan, network: UViT, tmp_path: Path) -> MakeTrainer:
    """Trainers that start from the same weights; keyword arguments replace those of the phase."""
    start = {name: value.clone() for name, value in network.state_dict().items()}
    objective = make_objective(recipe.objective)
    heldout = make_heldout_loss(network, objective, data, 32, 0, torch.device("cpu"))

    def make(folder: str = "work", log: Any = lambda _: None, seed: int = 0, **changes: Any) -> PhaseTrainer:
        fresh = UViT.from_config(network.config)
        fresh.load_state_dict(start)
        heldout_loss = changes.pop("heldout_loss", heldout)
        seconds, watch = changes.pop("checkpoint_seconds", 1e9), changes.pop("watch", lambda _: None)
        before = changes.pop("before", None)
        return PhaseTrainer(
            *(fresh, objective, data, replace(plan, **changes), heldout_loss, seed, tmp_path / folder, log, seconds),
            watch=watch,
            before=before,
        )

    return make


def replace_step(trainer: PhaseTrainer, step: Callable[..., Any]) -> None:
    """Let `step` be what the loop calls for each batch."""
    trainer.train_step = step  # type: ignore[method-assign]


def kill_after(trainer: PhaseTrainer, step: int) -> None:
    """Train until SIGKILL would have come: nothing runs after the step, not even what stops gracefully."""

    class Killed(BaseException):
        pass

    train_step = trainer.train_step

    def dying(*batch: Any) -> None:
        if trainer.step == step:
            raise Killed
        train_step(*batch)

    replace_step(trainer, dying)
    with pytest.raises(Killed):
        trainer.run()


def test_training_lowers_the_heldout_loss(make_trainer: MakeTrainer) -> None:
    steps = 200
    changes = {"steps": steps, "schedule_steps": steps, "heldout_steps": (1, steps), "snapshot_steps": {}}
    history = make_trainer(**changes).run().history
    assert history[-1]["heldout_loss"] < 0.7 * history[0]["heldout_loss"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(make_trainer: MakeTrainer) -> None:
    hashes = [
        network_sha256(make_trainer(name, seed=seed).run().network) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("killed_at", [1, 4, 6, 7, 11])
def test_a_killed_run_goes_on_to_the_same_weights_and_rows(make_trainer: MakeTrainer, killed_at: int) -> None:
    whole = make_trainer("whole").run()
    kill_after(make_trainer("cut", checkpoint_seconds=0.0), killed_at)
    resumed = make_trainer("cut")
    result = resumed.run()
    assert network_sha256(result.network) == network_sha256(whole.network)
    assert result.history == whole.history
    assert len(result.seconds) == len(result.history)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_done_in_two_runs_equal_steps_done_in_one(
    make_trainer: MakeTrainer, recipe: Recipe, optimizer: str
) -> None:
    settings = recipe.optimisation.model_copy(update={"optimizer": optimizer})
    whole = make_trainer("whole", optimisation=settings)
    whole.run()
    first = make_trainer("parts", checkpoint_seconds=0.0, optimisation=settings)
    kill_after(first, 5)
    second = make_trainer("parts", optimisation=settings)
    second.run()
    assert network_sha256(second.network) == network_sha256(whole.network)
    for one, other in zip(second.optimizers, whole.optimizers, strict=True):
        for a, b in zip(one.state.values(), other.state.values(), strict=True):
            assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_phase_without_positions_leaves_their_embedding_as_it_is(make_trainer: MakeTrainer) -> None:
    told, untold = make_trainer("told"), make_trainer("untold", positions=False)
    before = told.network.pos_embed.detach().clone()
    for trainer in (told, untold):
        trainer.run()
    assert not torch.equal(told.network.pos_embed, before)
    assert torch.equal(untold.network.pos_embed, before)
    assert not torch.equal(untold.network.patch_embed.weight, told.network.patch_embed.weight)


def test_who_watches_sees_every_row_and_may_end_the_training(make_trainer: MakeTrainer) -> None:
    class PrunedError(Exception):
        pass

    rows: list[Row] = []

    def watch(row: Row) -> None:
        rows.append(row)
        if row["step"] == 6:
            raise PrunedError

    trainer = make_trainer(watch=watch)
    with pytest.raises(PrunedError):
        trainer.run()
    assert [row["step"] for row in rows] == [3, 6]
    assert trainer.history == rows


def test_a_finished_phase_is_not_trained_again(make_trainer: MakeTrainer) -> None:
    first = make_trainer().run()
    again = make_trainer()
    replace_step(again, pytest.fail)
    assert network_sha256(again.run().network) == network_sha256(first.network)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_saves_and_the_same_command_goes_on(make_trainer: MakeTrainer, number: int) -> None:
    trainer = make_trainer("cut")
    train_step = trainer.train_step

    def interrupted(*batch: Any) -> None:
        train_step(*batch)
        if trainer.step == 5:
            os.kill(os.getpid(), number)

    replace_step(trainer, interrupted)
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="saved at step 5 of 12"):
        trainer.run()
    assert signal.getsignal(number) == handler
    resumed = make_trainer("cut")
    result = resumed.run()
    assert network_sha256(result.network) == network_sha256(make_trainer("whole").run().network)


def test_a_request_to_stop_while_the_last_state_is_saved_is_not_lost(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, state: dict[str, Any]) -> None:
        save_checkpoint(path, state)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("maskdm.training.loop.save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt, match="saved at step 12 of 12"):
        make_trainer().run()


def test_a_nan_loss_stops_names_the_step_and_keeps_the_last_good_checkpoint(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(checkpoint_seconds=0.0)
    train_step = trainer.train_step

    def poisoned(*batch: Any) -> None:
        if trainer.step == 7:
            with torch.no_grad():
                trainer.network.head.bias.fill_(float("nan"))
        train_step(*batch)

    replace_step(trainer, poisoned)
    with pytest.raises(MaskDMError, match=r"pretrain loss became nan at step 8 of 12 \(phase 0\).*phase0\.pt"):
        trainer.run()
    kept = torch.load(trainer.checkpoint_path, weights_only=True)
    assert kept["step"] == 7
    assert all(torch.isfinite(value).all() for value in kept["trainee"].values())


def test_a_corrupt_checkpoint_stops_the_run_and_stays(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.checkpoint_path.parent.mkdir(parents=True)
    trainer.checkpoint_path.write_bytes(b"PK damaged")
    with pytest.raises(MaskDMError, match=r"phase0\.pt: corrupt checkpoint"):
        trainer.run()
    assert trainer.checkpoint_path.read_bytes() == b"PK damaged"


def test_a_checkpoint_of_another_network_is_not_loaded_in_part(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    state = trainer.state_dict()
    del state["trainee"]["network.head.bias"]
    save_checkpoint(trainer.checkpoint_path, state)
    with pytest.raises(MaskDMError, match=r"phase0\.pt: .*does not fit"):
        trainer.run()


def test_rows_are_logged_only_once_they_are_safe(make_trainer: MakeTrainer) -> None:
    logged: list[list[Row]] = []
    trainer = make_trainer(log=lambda rows: logged.append(list(rows)), checkpoint_seconds=0.0)
    kill_after(trainer, 7)
    saved = torch.load(trainer.checkpoint_path, weights_only=True)
    assert logged[-1] == saved["history"]
    assert [row["step"] for row in logged[-1]] == [3, 6]
    trainer = make_trainer(log=lambda rows: logged.append(list(rows)))
    trainer.run()
    assert [row["step"] for row in logged[-1]] == [3, 6, 9, 12]


def test_rows_count_images_and_flops_of_the_whole_arm(make_trainer: MakeTrainer, plan: PhasePlan) -> None:
    row = make_trainer(start_images=1000, start_flops=5e6).run().history[-1]
    assert row["images_seen"] == 1000 + 12 * plan.batch_size
    assert row["train_flops"] == pytest.approx(5e6 + 12 * plan.batch_size * plan.flops_per_image)


def test_the_snapshot_holds_the_averaged_weights_of_its_step(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer("whole").run()
    stopped = make_trainer("cut", checkpoint_seconds=0.0)
    kill_after(stopped, 6)
    snapshot = load_snapshot(tmp_path / "whole" / "snapshots" / "0500", torch.device("cpu"))
    assert network_sha256(snapshot) == network_sha256(stopped.ema.network)


def test_a_removed_pixel_cannot_change_the_step(make_trainer: MakeTrainer) -> None:
    from maskdm.methods.masks import draw_ids_keep
    from maskdm.networks.patches import unpatchify
    from maskdm.runtime.seeding import generator

    hashes = set()
    for fill in (0, 255):
        trainer = make_trainer()
        images, labels = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8), None
        ids_keep = draw_ids_keep(trainer.plan.mask, (4, 4), 16, generator("cpu", 0, "train", 0, 1))  # type: ignore[arg-type]
        removed = torch.ones(16, 16).scatter_(1, ids_keep, 0)[:, :, None].expand(-1, -1, 4)
        torch.manual_seed(1)
        images = torch.arange(16 * 64, dtype=torch.float32).reshape(16, 1, 8, 8).remainder(256)
        images = torch.where(unpatchify(removed, 2, (4, 4)) > 0, float(fill), images).to(torch.uint8)
        trainer.train_step(images, labels)
        hashes.add(network_sha256(trainer.network))
    assert len(hashes) == 1


def test_a_network_with_classes_trains_on_the_labels_of_its_images(
    params: Params, recipe: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    network = UViT(image_size=(8, 8), patch_size=2, in_channels=1, embed_dim=16, depth=3, num_heads=2, num_classes=4)
    objective = make_objective(recipe.objective)
    heldout = make_heldout_loss(network, objective, data, 32, 0, torch.device("cpu"))
    changed = params.model_copy(update={"model": params.model.model_copy(update={"class_conditional": True})})
    plan = replace(plan_finetune(changed, recipe, "scratch"), steps=2, heldout_steps=(2,), snapshot_steps={})
    before = network.label_embed.weight.detach().clone()
    PhaseTrainer(network, objective, data, plan, heldout, 0, tmp_path, lambda _: None).run()
    assert not torch.equal(before, network.label_embed.weight)


def labelled_trainer(params: Params, recipe: Recipe, data: PreparedData, folder: Path, share: float) -> PhaseTrainer:
    """A dense phase of a network with 4 classes, that drops a share of the labels."""
    network = UViT(image_size=(8, 8), patch_size=2, in_channels=1, embed_dim=16, depth=3, num_heads=2, num_classes=4)
    objective = make_objective(recipe.objective)
    heldout = make_heldout_loss(network, objective, data, 32, 0, torch.device("cpu"))
    changed = params.model_copy(update={"model": params.model.model_copy(update={"class_conditional": True})})
    optimisation = recipe.optimisation.model_copy(update={"label_dropout": share})
    plan = plan_finetune(changed, recipe.model_copy(update={"optimisation": optimisation}), "scratch")
    plan = replace(plan, batch_size=1000, steps=2, heldout_steps=(2,), snapshot_steps={})
    return PhaseTrainer(network, objective, data, plan, heldout, 0, folder, lambda _: None)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_labels_is_dropped_in_training(
    params: Params, recipe: Recipe, data: PreparedData, tmp_path: Path, share: float
) -> None:
    trainer = labelled_trainer(params, recipe, data, tmp_path, share)
    seen: list[torch.Tensor] = []
    trainer.network.register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    labels = torch.arange(1000) % 4
    trainer.train_step(torch.randint(256, (1000, 1, 8, 8), dtype=torch.uint8), labels)
    dropped = seen[0] == trainer.network.no_label
    assert dropped.float().mean().item() == pytest.approx(share, abs=0.05)
    assert torch.equal(seen[0][~dropped], labels[~dropped])
    moments = trainer.optimizers[0].state[trainer.network.label_embed.weight]["exp_avg"].abs().sum(1)
    assert (moments[:4] > 0).all() == (share < 1)
    assert (moments[4] > 0) == (share > 0)


def test_dropping_labels_moves_no_other_draw_and_not_the_heldout_loss(
    params: Params, recipe: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    told = labelled_trainer(params, recipe, data, tmp_path / "told", 0.0)
    torch.manual_seed(0)
    untold = labelled_trainer(params, recipe, data, tmp_path / "untold", 0.5)
    assert told.heldout_loss(told.network) == untold.heldout_loss(untold.network)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for trainer in (told, untold):
        trainer.network.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[1])))
        trainer.train_step(torch.arange(64000).reshape(1000, 1, 8, 8).to(torch.uint8), torch.arange(1000) % 4)
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)


def test_too_many_heldout_images_are_named(network: UViT, data: PreparedData, recipe: Recipe) -> None:
    with pytest.raises(MaskDMError, match=r"heldout\.images=65; allowed: at most 64"):
        make_heldout_loss(network, make_objective(recipe.objective), data, 65, 0, torch.device("cpu"))


def test_the_averaged_weights_are_a_weighted_mean_of_the_trained_ones(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    expected = trainer.network.head.bias.detach().double()
    for step in range(1, 4):
        trainer.train_step(torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8), None)
        decay = ema_decay(trainer.plan.optimisation, step, 12)
        expected = decay * expected + (1 - decay) * trainer.network.head.bias.detach().double()
    torch.testing.assert_close(trainer.ema.network.head.bias.double(), expected, rtol=1e-5, atol=1e-8)


def test_averaging_keeps_nothing_of_the_steps(make_trainer: MakeTrainer) -> None:
    """Weights with a gradient function would hold on to every step before: memory that grows with the training."""
    trainer = make_trainer()
    trainer.run()
    assert not any(weight.requires_grad or weight.grad_fn for weight in trainer.ema.parameters())


def test_the_heldout_loss_is_measured_on_the_averaged_weights(make_trainer: MakeTrainer) -> None:
    seen: list[nn.Module] = []

    def heldout_loss(network: nn.Module) -> float:
        seen.append(network)
        return 1.0

    trainer = make_trainer(heldout_loss=heldout_loss)
    trainer.run()
    assert {id(network) for network in seen} == {id(trainer.ema.network)}


def test_a_phase_that_goes_on_starts_from_weights_averages_and_moments_as_they_were(make_trainer: MakeTrainer) -> None:
    first = make_trainer("first")
    state = first.run().state
    second = make_trainer("second", before=state)
    for own, handed in ((second.network, first.network), (second.ema.network, first.ema.network)):
        assert network_sha256(own) == network_sha256(handed)
    assert network_sha256(second.network) != network_sha256(second.ema.network)
    for one, other in zip(second.optimizers, first.optimizers, strict=True):
        for a, b in zip(one.state.values(), other.state.values(), strict=True):
            assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_phase_that_goes_on_does_so_with_its_own_settings(make_trainer: MakeTrainer, recipe: Recipe) -> None:
    settings = recipe.optimisation.model_copy(update={"weight_decay": 0.123})
    second = make_trainer("second", before=make_trainer("first").run().state, optimisation=settings)
    assert second.optimizers[0].param_groups[0]["weight_decay"] == 0.123


def test_a_phase_that_goes_on_does_so_after_a_kill_too(make_trainer: MakeTrainer) -> None:
    state = copy.deepcopy(make_trainer("first").run().state)
    changes = {"index": 1, "schedule_offset": 12.0, "schedule_steps": 24.0}
    whole = make_trainer("whole", before=copy.deepcopy(state), **changes).run()
    kill_after(make_trainer("cut", before=copy.deepcopy(state), checkpoint_seconds=0.0, **changes), 5)
    resumed = make_trainer("cut", before=copy.deepcopy(state), **changes).run()
    assert network_sha256(resumed.network) == network_sha256(whole.network)
    assert resumed.history == whole.history
