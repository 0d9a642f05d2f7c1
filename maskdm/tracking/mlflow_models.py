"""Models in MLflow: the weights of a run, on its page and in the registry, where each arm has a version a seed.

Only runs whose weights are kept have one. The hundreds of trials of a study or a search leave none.
"""

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from maskdm.tracking.subject import Subject

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature

LOADER = "maskdm.engine.model"  # the module whose `_load_pyfunc` reads what `Model.write` wrote
REGISTERED = {"default"}  # stages whose models have versions: `maskdm train` is for trying things out


@dataclass(frozen=True)
class Model:
    """Trained weights for MLflow.

    Attributes:
        write: fills a folder.
        has_classes: whether a caller may ask for images of a class.
        options: what a caller may change of the sampler -> what it is otherwise.
    """

    write: Callable[[Path], None]
    has_classes: bool
    options: dict[str, Any]


def has_model(run: "Run") -> bool:
    """Whether the run has its model, whole: that is said last."""
    return bool(run.outputs and run.outputs.model_outputs)


def log_model(client: "MlflowClient", run: "Run", subject: Subject, model: Model) -> None:
    """Add the model of a run, unless it is there. What a kill has left of one is completed, or made anew.

    Args:
        client: of the store.
        run: as the store has it now, with its final metrics: they stand on the model's page, too.
        subject: what the run is about.
        model: its weights.
    """
    from mlflow.entities import LoggedModelOutput

    if has_model(run):
        return
    begun = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    ready = [found for found in begun if found.status == "READY"]
    for torn in begun:
        if torn not in ready:
            client.delete_logged_model(torn.model_id)
    logged = ready[0] if ready else _create(client, run, subject, model)
    if subject.record.stage in REGISTERED:
        _register(client, logged, subject)
    client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step=0)])


def _create(client: "MlflowClient", run: "Run", subject: Subject, model: Model) -> "LoggedModel":
    from mlflow.entities import LoggedModelStatus, Metric

    params = {name: str(value) for name, value in subject.params.items()}
    name = f"{subject.record.arm}-seed{subject.record.params['seed']}"
    created = client.create_logged_model(run.info.experiment_id, name, run.info.run_id, params=params)
    with TemporaryDirectory() as folder:
        _write(Path(folder), created, model)
        client.log_model_artifacts(created.model_id, str(Path(folder) / "model"))
    final = [
        max(client.get_metric_history(run.info.run_id, key), key=lambda metric: (metric.step, metric.timestamp))
        for key in run.data.metrics
        if not key.startswith("system/") and not key.endswith("_by_gflops")
    ]
    of_model = [Metric(each.key, each.value, each.timestamp, each.step, created.model_id) for each in final]
    client.log_batch(run.info.run_id, of_model)  # the run has them already: MLflow keeps equal ones once
    return client.finalize_logged_model(created.model_id, LoggedModelStatus.READY)


def _write(folder: Path, created: "LoggedModel", model: Model) -> None:
    """`folder/model`: the files of the model, and what MLflow writes beside them."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model as Description

    model.write(folder / "pipeline")
    described = Description(created.artifact_location, created.source_run_id, model_id=created.model_id)
    requirements = [f"maskdm=={version('maskdm')}"]  # named, or else MLflow loads the model to find them out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas, about code of MLflow's
        mlflow.pyfunc.save_model(
            folder / "model",
            loader_module=LOADER,
            data_path=str(folder / "pipeline"),
            mlflow_model=described,
            signature=_signature(model),
            input_example=pd.DataFrame({"seed": [0, 1]}),
            pip_requirements=requirements,
        )


def _signature(model: Model) -> "ModelSignature":
    """A row an image -> pixels."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    columns: list[ColSpec | TensorSpec] = [ColSpec("long", "seed")]
    if model.has_classes:
        columns.append(ColSpec("long", "label", required=False))
    kinds = {int: "long", float: "double"}
    options = [ParamSpec(name, kinds[type(value)], value) for name, value in model.options.items()]
    pixels = TensorSpec(np.dtype("uint8"), (-1, -1, -1, -1))
    return ModelSignature(Schema(columns), Schema([pixels]), ParamSchema(options))


def _register(client: "MlflowClient", model: "LoggedModel", subject: Subject) -> None:
    """Make the model a version of its arm's, with the alias `seed<n>`; what is done already stays."""
    from mlflow.exceptions import MlflowException

    data, arm, alias = subject.record.data["name"], subject.record.arm, f"seed{subject.record.params['seed']}"
    name = re.sub("[/:]", "-", f"{data}-{arm}")  # MLflow allows neither in a model's name
    arm_in_words = f"Arm `{arm}` on {data}: a version a training. The newest of each seed has the alias `seed<n>`."
    use = f'`mlflow.pyfunc.load_model("models:/{name}@{alias}").predict(pandas.DataFrame({{"seed": [0, 1]}}))`'
    try:
        client.create_registered_model(name, description=arm_in_words)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # A server knows its models by their ids; without one MLflow would look for the id in its default store.
    source = f"models:/{model.model_id}" if client.tracking_uri.startswith("http") else model.artifact_location
    begun = client.search_model_versions(f"name = '{name}' and run_id = '{model.source_run_id}'")
    version = (
        begun[0]  # a kill may have left it without its alias
        if begun
        else client.create_model_version(
            name,
            source,
            model.source_run_id,
            description=f"Arm `{arm}` on {data}, {alias}. It draws an image a row: {use}",
            await_creation_for=0,
            model_id=model.model_id,
        )
    ).version
    client.set_registered_model_alias(name, alias, version)
    known_as = json.dumps([{"name": name, "version": version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": known_as})  # the UI reads it
