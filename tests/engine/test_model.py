"""Models in MLflow: a trained network that its pyfunc flavour loads and draws images from."""

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.engine.drawing import draw_samples
from maskdm.engine.model import as_model, recorded_model
from maskdm.engine.weights import Weights
from maskdm.networks.network import Network
from maskdm.networks.uvit import UViT
from maskdm.runtime.errors import MaskDMError
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import Machine, Record, Stage, write_record
from maskdm.training.checkpoint import save_snapshot
from tests.conftest import PARAMS, RECIPE

DATA = {"name": "digits", "sha256": "ab" * 32, "train": 1500, "heldout": 297, "shape": [1, 8, 8]}
ROWS = [{"step": 1, "images_seen": 64, "train_flops": 3e9, "loss": 0.7, "heldout_loss": 0.5}]
MACHINE = Machine("2026-01-02T03:04:05+00:00", {}, {}, {"device": "cpu"}, 1.0, None, None, [1.0])
RECORDED = {f"sampling.{key}": value for key, value in Params.model_validate(PARAMS).sampling.model_dump().items()}


def network(**options: Any) -> UViT:
    return UViT(image_size=(8, 8), patch_size=2, in_channels=1, embed_dim=16, depth=3, num_heads=2, **options)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, which the tests share: making one takes seconds."""
    root = tmp_path_factory.mktemp("project")
    mlflow_store.Store(root)
    return root


@pytest.fixture
def store(project: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = mlflow_store.store_uri(project)
    mlflow.set_tracking_uri(uri)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow has just set it
    return MlflowClient(uri)


def trial(arm: str, seed: int = 0, stage: Stage = "default") -> Record:
    objective = RECIPE["objective"]
    params = {"arm": arm, "seed": seed, **{key: objective[key] for key in objective if key != "name"}, **RECORDED}
    return Record(stage, f"{arm}/{seed}", arm, f"{arm}{seed}", params, DATA, {"heldout_loss": 0.5}, list(ROWS))


def log(project: Path, folder: Path, record: Record, trained: Network) -> None:
    """What a stage does at its end."""
    save_snapshot(folder / "weights", trained, None)
    recipe, sampling = Recipe.model_validate(RECIPE), Params.model_validate(PARAMS).sampling
    with mlflow_store.live_run(project, record) as run:
        run.log_history(ROWS)
        run.log_model(as_model(folder / "weights", recipe.objective, sampling))


def drawn_by(model: str) -> np.ndarray:
    return np.asarray(mlflow.pyfunc.load_model(model).predict(pd.DataFrame({"seed": [0]})))


def test_a_registered_model_draws_what_maskdm_sample_draws(project: Path, store: MlflowClient, tmp_path: Path) -> None:
    trained = network()
    log(project, tmp_path, trial("drawn", 3), trained)
    model = mlflow.pyfunc.load_model("models:/digits-drawn@seed3")
    images = model.predict(pd.DataFrame({"seed": [5, 0]}))
    assert images.shape == (2, 8, 8, 1)
    params = Params.model_validate(PARAMS)
    weights = Weights("drawn", tmp_path, trained, Recipe.model_validate(RECIPE).objective, params.sampling)
    for row, seed in enumerate((5, 0)):
        draw_samples(weights, tmp_path / f"{seed}", 1, seed, None, None)
        drawn = np.asarray(Image.open(tmp_path / f"{seed}" / "images" / "00000.png"))
        assert np.abs(images[row, ..., 0].astype(int) - drawn).max() <= 1  # batches round otherwise
    shown = re.search("`(mlflow.*)`", store.get_model_version_by_alias("digits-drawn", "seed3").description or "")
    assert shown
    first = model.predict(pd.DataFrame({"seed": [0, 1]}))
    assert (eval(shown.group(1), {"mlflow": mlflow, "pandas": pd}) == first).all()
    assert "`drawn` on digits" in (store.get_registered_model("digits-drawn").description or "")
    few = model.predict(pd.DataFrame({"seed": [5, 0]}), params={"num_inference_steps": 2})
    assert (few != images).any()


def test_the_label_of_a_network_with_classes_is_obeyed(project: Path, store: MlflowClient, tmp_path: Path) -> None:
    log(project, tmp_path, trial("classes"), network(num_classes=3))
    model = mlflow.pyfunc.load_model("models:/digits-classes@seed0")

    def draw(**columns: list[int]) -> np.ndarray:
        return np.asarray(model.predict(pd.DataFrame({"seed": [4, 4], **columns})))

    assert (draw(label=[1, 1])[0] == draw(label=[1, 1])[1]).all()
    assert (draw(label=[0, 1]) == draw()).all()  # all in turn


def test_the_models_page_has_the_final_metrics_and_the_run_its_model(
    project: Path, store: MlflowClient, tmp_path: Path
) -> None:
    log(project, tmp_path, trial("page"), network())
    [model] = store.search_logged_models(["1"], "name = 'page-seed0'")
    assert store.get_model_version_by_alias("digits-page", "seed0").run_id == model.source_run_id
    assert {metric.key: metric.value for metric in model.metrics or []} == {
        **{"heldout_loss": 0.5, "loss": 0.7, "images_seen": 64, "train_flops": 3e9}
    }
    run = store.get_run(model.source_run_id or "")
    assert run.outputs
    assert run.inputs
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"
    assert len(store.get_metric_history(run.info.run_id, "heldout_loss")) == 1, "logged twice"


def test_the_seeds_of_an_arm_are_versions_of_one_model_and_a_run_has_one(
    project: Path, store: MlflowClient, tmp_path: Path
) -> None:
    for seed in (0, 1, 0):
        log(project, tmp_path, trial("versions", seed), network())
    found = store.search_model_versions("name = 'digits-versions'")
    assert len(found) == 2
    assert store.get_registered_model("digits-versions").aliases.keys() == {"seed0", "seed1"}


def test_a_training_on_its_own_has_a_model_and_no_version(project: Path, store: MlflowClient, tmp_path: Path) -> None:
    log(project, tmp_path, trial("alone", stage="train"), network())
    [run] = store.search_runs(["1"], "tags.`maskdm.run_id` = 'train@alone/0:alone0'")
    assert run.outputs
    assert not store.search_model_versions("name = 'digits-alone'")
    assert drawn_by(f"models:/{run.outputs.model_outputs[0].model_id}").shape == (1, 8, 8, 1)


def test_what_a_kill_left_of_a_model_is_made_again(
    project: Path, store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = trial("killed")
    for broken in ("log_model_artifacts", "create_model_version", "set_registered_model_alias"):
        with monkeypatch.context() as failing:
            failing.setattr(MlflowClient, broken, lambda *_, **__: (_ for _ in ()).throw(OSError("killed")))
            log(project, tmp_path, record, network())
    log(project, tmp_path, record, network())
    models = store.search_logged_models(["1"], "name = 'killed-seed0'")
    assert [str(model.status) for model in models] == ["READY"]
    assert len(store.search_model_versions("name = 'digits-killed'")) == 1
    assert store.get_registered_model("digits-killed").aliases.keys() == {"seed0"}


def test_nothing_is_unpickled_and_no_code_of_the_folder_is_run(
    project: Path, store: MlflowClient, tmp_path: Path
) -> None:
    log(project, tmp_path, trial("safe"), network())
    folder = Path(mlflow.artifacts.download_artifacts("models:/digits-safe@seed0", dst_path=str(tmp_path / "copy")))
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".py", ".yaml", ".txt", ""}, kinds
    for code in folder.rglob("*.py"):
        code.write_text("raise SystemExit('run')")
    assert drawn_by(str(folder)).shape == (1, 8, 8, 1)
    weights = next(folder.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(MaskDMError, match="no usable weights"):
        mlflow.pyfunc.load_model(str(folder))


def test_sync_adds_the_models_whose_weights_are_here_and_are_the_recorded_ones(
    project: Path, store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store.store_uri(project))
    for seed in (0, 1):
        write_record(tmp_path, trial("synced", seed), MACHINE)
        save_snapshot(tmp_path / f"{seed}" / "weights", network(), None)
    (tmp_path / "0" / "training.json").write_text(json.dumps({"identity": "x", "history": ROWS}))
    others = [{**ROWS[0], "loss": 0.8}]
    (tmp_path / "1" / "training.json").write_text(json.dumps({"identity": "x", "history": others}))

    assert mlflow_store.sync(tmp_path) == 2
    assert mlflow_store.sync(tmp_path) == 0

    def model_of(record: Record) -> Any:
        return recorded_model(record, tmp_path / record.key.rpartition("/")[2])

    assert mlflow_store.sync(tmp_path, model_of) == 1
    assert mlflow_store.sync(tmp_path, model_of) == 0
    assert store.get_registered_model("digits-synced").aliases.keys() == {"seed0"}
    assert drawn_by("models:/digits-synced@seed0").shape == (1, 8, 8, 1)
