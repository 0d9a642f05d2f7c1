"""One arm with one seed, trained and judged in one process."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from maskdm.config.comparison import Phase
from maskdm.config.masks import PatchMask
from maskdm.config.objective import SAMPLERS
from maskdm.config.params import Params
from maskdm.config.reading import load_recipe
from maskdm.engine.project import Project
from maskdm.engine.stages import evaluate, finetune, pretrain
from maskdm.engine.train import Timing
from maskdm.engine.trial import finish, open_record, run_trial, trial_identity, trial_plans
from maskdm.networks.catalogue import NETWORKS
from maskdm.runtime.errors import MaskDMError, StoppedEarly
from maskdm.runtime.processes import ALONE
from maskdm.tracking.records import OF_SAMPLES, read_records
from maskdm.training.checkpoint import load_snapshot
from maskdm.training.loop import Row
from tests.conftest import MODELS
from tests.imports import PROJECT
from tests.workspace import make_prepared, write_params

MASKED = (Phase(mask=PatchMask(strategy="patch", ratio=0.75), share=0.25, batch_size=16),)
DENSE = Phase(batch_size=16)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of toy settings with prepared data and reference."""
    folder = tmp_path_factory.mktemp("trial")
    make_prepared(folder, budget={"train_flops": 5e9, "snapshots": [0.5, 1.0]})
    return folder


@pytest.fixture
def project(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(prepared)
    return Project.open(ALONE)


def of(project: Project, name: str, pretrain: tuple[Phase, ...], seed: int = 1) -> Project:
    params = project.params.model_copy(update={"arms": {name: (*pretrain, DENSE)}})
    return replace(project, params=params.trial(name, seed))


def test_a_trial_spends_its_budget_and_is_judged_at_its_snapshots(project: Project) -> None:
    trial = of(project, "patches", MASKED)
    record = run_trial(trial, "study", "masks/patches-1", judged=True).record
    losses = [row for row in record.history if "heldout_loss" in row]
    judged = [row for row in record.history if "fd_effnet_lite0" in row]
    assert {row["phase"] for row in losses} == {0, 1}
    assert [row["fraction"] for row in judged] == [0.5, 1.0]
    assert record.summary["train_flops"] == pytest.approx(trial.params.budget.train_flops, rel=0.0025)
    for name in ("fd_effnet_lite0", *OF_SAMPLES):
        assert record.summary[name] == judged[-1][name]
    ((read, machine),) = [pair for pair in read_records(Path(), ("study",)) if pair[0].key == record.key]
    assert read == record
    assert machine is not None
    assert machine.seconds == pytest.approx(sorted(machine.seconds[: len(losses)]) + machine.seconds[len(losses) :])
    assert not list(Path("work/trials").glob("*/state")), "nothing is left to resume"


def test_a_snapshot_that_an_older_version_judged_keeps_what_that_measured(project: Project) -> None:
    """A trial was killed after its last snapshot was judged, and goes on with a version that measures more."""
    trial = of(project, "patches", MASKED)
    record = open_record(trial, "study", "old/patches-1", judged=True)
    trained = {"images_seen": 64, "train_flops": 1e9, "loss": 0.5, "heldout_loss": 0.25}
    measured = {"fd_effnet_lite0": 9.0, "kid": 0.5, "precision": 0.5, "recall": 0.5}
    judged = {"images_seen": 64, "train_flops": 1e9, **measured}
    found = finish(trial, record, [trained], Timing("2026-01-02T03:04:05+00:00", None, [1.0]), [judged]).record
    assert found.summary == trained | measured


def test_the_stages_of_params_yaml_make_the_trial_that_a_study_makes(project: Project) -> None:
    trial = of(project, "patches", MASKED)
    whole = run_trial(trial, "study", "whole/patches-1", judged=True).record
    for stage in (pretrain, finetune, evaluate):
        stage(trial)
    ((staged, machine),) = read_records(Path(), ("default",))
    assert machine is not None
    assert staged.key == "patches/1"
    assert (staged.identity, staged.history, staged.summary) == (whole.identity, whole.history, whole.summary)
    assert staged.params == whole.params


@pytest.mark.parametrize("file", ["weights/diffusion_pytorch_model.safetensors", "state.pt", "training.json"])
def test_a_damaged_result_of_a_stage_is_named_and_made_again_when_it_is_deleted(project: Project, file: str) -> None:
    """DVC sees that it is another file and runs the stage again, which must not take it for done."""
    trial = of(project, "damaged", MASKED)
    pretrain(trial)
    path = Path("runs/pretrain/damaged/1") / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    for stage in (pretrain, finetune):
        with pytest.raises(MaskDMError, match="; delete runs/pretrain/damaged/1, and `dvc repro` trains it again"):
            stage(trial)
    shutil.rmtree("runs/pretrain/damaged/1")
    pretrain(trial)
    assert path.read_bytes() == whole
    shutil.rmtree("runs/pretrain/damaged")


@pytest.mark.parametrize(("name", "train_flops"), [("dit", 5e9), ("unet", 2e10)])
def test_every_network_goes_through_all_stages(project: Project, name: str, train_flops: float) -> None:
    crops = {"mask": {"strategy": "crop", "crop": 3}, "share": 0.3, "batch_size": 16}
    budget = {"train_flops": train_flops, "snapshots": [0.1, 1.0]}  # the first while only crops are seen
    changes = {"model": MODELS[name], "arms": {name: [crops, {"batch_size": 16}]}, "baseline": name, "budget": budget}
    trial = replace(project, params=Params.model_validate(project.params.model_dump() | changes).trial(name, 1))
    for stage in (pretrain, finetune, evaluate):
        stage(trial)
    (record,) = [record for record, _ in read_records(Path(), ("default",)) if record.key == f"{name}/1"]
    losses = [row["heldout_loss"] for row in record.history if "heldout_loss" in row]
    assert losses[-1] < losses[0]
    assert record.params["model.name"] == name
    assert type(load_snapshot(Path("runs/finetune") / name / "1" / "weights", trial.device)) is NETWORKS[name]


@pytest.mark.parametrize("name", sorted(path.stem for path in (PROJECT / "profiles" / "recipes").glob("*.yaml")))
def test_every_recipe_trains_and_is_judged(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    sampler = SAMPLERS[load_recipe(name).objective.name][0]
    sampling = {"sampler": sampler, "num_inference_steps": 4, "eta": 0.0, "batch_size": 16}
    write_params(tmp_path, recipe=name, sampling=sampling, budget={"train_flops": 5e9, "snapshots": [1.0]})
    record = run_trial(of(Project.open(ALONE), "patches", MASKED), "study", "recipes/patches-1", judged=True).record
    losses = [row["heldout_loss"] for row in record.history if "heldout_loss" in row]
    assert losses[-1] < losses[0]
    assert record.summary["fd_effnet_lite0"] > 0
    assert record.history[-1]["sampler"] == sampler
    assert record.params.get("objective", "ddpm") == load_recipe(name).objective.name


def test_names_do_not_make_another_trial_but_seeds_masks_and_judging_do(project: Project) -> None:
    first = of(project, "patches", MASKED)
    identity = trial_identity(first, judged=True)
    assert trial_identity(of(project, "another-name", MASKED), judged=True) == identity
    others = [of(project, "patches", MASKED, seed=2), of(project, "patches", ())]
    assert identity not in {trial_identity(other, judged=True) for other in others}
    assert trial_identity(first, judged=False) != identity


def test_how_settings_are_written_does_not_make_another_trial_but_what_they_come_to_does(project: Project) -> None:
    (phase,), recipe = MASKED, project.recipe
    identity = trial_identity(of(project, "patches", MASKED), judged=False)
    spelt_out = {"handover": recipe.handover, "override": {"lr": recipe.optimisation.lr}}
    assert trial_identity(of(project, "patches", (phase.model_copy(update=spelt_out),)), judged=False) == identity
    another = {"override": {"lr": 2 * recipe.optimisation.lr}}
    assert trial_identity(of(project, "patches", (phase.model_copy(update=another),)), judged=False) != identity


def test_another_version_of_the_numbers_or_other_data_is_another_trial(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = of(project, "patches", MASKED)
    identity = trial_identity(trial, judged=False)
    elsewhere = trial.params.model_copy(update={"data": trial.params.data.model_copy(update={"root": "elsewhere"})})
    assert trial_identity(replace(trial, params=elsewhere), judged=False) == identity, "content counts"
    other = replace(trial.data, info=trial.data.info | {"sha256": "0" * 64})
    assert trial_identity(replace(trial, data=other), judged=False) != identity
    monkeypatch.setattr("maskdm.engine.project.NUMERICS", 0)
    assert trial_identity(trial, judged=False) != identity


def test_an_arm_without_a_mask_is_one_dense_phase(project: Project) -> None:
    (plan,) = trial_plans(of(project, "scratch", ()))
    assert plan.mask is None


def test_who_watches_may_end_a_trial_and_nothing_is_recorded(project: Project) -> None:
    def end(row: Row) -> None:
        raise MaskDMError(f"enough at {row['train_flops']}")

    with pytest.raises(MaskDMError, match="enough at"):
        run_trial(of(project, "ended", MASKED), "search", "toy/0", judged=False, watch=end)
    assert not list(Path("records").glob("search/**/*.json"))


def test_a_trial_that_is_stopped_early_is_a_finished_run_and_leaves_nothing_behind(project: Project) -> None:
    def stop(row: Row) -> None:
        raise StoppedEarly("enough")

    with pytest.raises(StoppedEarly):
        run_trial(of(project, "stopped", MASKED), "search", "toy/1", judged=False, watch=stop)
    client = MlflowClient(f"sqlite:///{Path('mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name("maskdm")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id], "tags.`maskdm.key` = 'toy/1'")
    assert (run.info.status, run.data.tags["maskdm.stopped_early"]) == ("FINISHED", "enough")
    trial = trial_identity(of(project, "stopped", MASKED), judged=False)
    assert not (Path("work") / "trials" / trial).exists()
