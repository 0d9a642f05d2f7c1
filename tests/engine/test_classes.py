"""A network that is told the class of each image, from labelled folders to guided samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskdm.engine.project import Project
from maskdm.engine.stages import evaluate, finetune, pretrain
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.processes import ALONE
from maskdm.tracking.records import read_records
from pipeline import prepare, reference
from tests.conftest import PARAMS
from tests.raw_data import image_bytes, place
from tests.workspace import make_workspace, write_params

DATA = {"name": "image_folder", "root": "images", "channels": 1, "image_size": 8, "holdout": 64, "train_images": None}
LEVELS = {"bright": range(190, 250), "dark": range(60)}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with bright and dark images in two folders."""
    make_workspace(tmp_path, "smoke")
    monkeypatch.chdir(tmp_path)
    for name, levels in LEVELS.items():
        place(
            tmp_path / "images" / name, {f"{n}.png": image_bytes(levels[n % 60], (8, 8 + n // 60)) for n in range(120)}
        )
    return tmp_path


def opened(folder: Path, **data: Any) -> Project:
    """The project, with a network that is told and guided by classes."""
    told: dict[str, Any] = {"batch_size": 8, "override": {"label_dropout": 0.2}}
    masked = told | {"mask": {"strategy": "patch", "ratio": 0.75}, "share": 0.2, "batch_size": 16}
    write_params(
        folder,
        data=DATA | data,
        model=PARAMS["model"] | {"class_conditional": True},
        sampling=PARAMS["sampling"] | {"guidance_scale": 2.0},
        arms={"scratch": [told], "staged": [masked, told]},
    )
    prepare.main([])
    return Project.open(ALONE)


def test_samples_are_of_the_class_that_they_are_asked_for(images: Path) -> None:
    trial = opened(images, labels="folders").trial("staged", 1)
    reference.main([])
    for stage in (pretrain, finetune, evaluate):
        stage(trial)
    ((record, _),) = read_records(Path(), ("default",))
    assert {row["guidance_scale"] for row in record.history if "heldout_loss" not in row} == {2.0}
    assert record.params["label_dropout"] == 0.2
    levels = np.load("runs/evaluate/staged/1/samples.npy").mean(axis=(1, 2, 3))
    assert 0.3 < (levels > 125).mean() < 0.7, "the classes are as frequent as in the data"
    assert np.abs(levels - 125).min() > 30, "no sample lies between the classes"


def test_labels_that_the_settings_leave_out_are_named(images: Path) -> None:
    with pytest.raises(MaskDMError, match=r"image_folder has no labels; allowed: false, or data\.labels: folders$"):
        opened(images)
