import errno
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from maskdm.config.reading import load_recipe
from maskdm.networks.uvit import UViT
from maskdm.runtime import files
from maskdm.runtime.errors import MaskDMError
from maskdm.training.checkpoint import (
    fingerprint,
    load_checkpoint,
    load_objective,
    load_snapshot,
    network_sha256,
    save_checkpoint,
    save_snapshot,
)

CPU = torch.device("cpu")


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {"step": 3, "weights": torch.randn(4), "history": [{"loss": 0.5}]}
    save_checkpoint(tmp_path / "deep" / "state.pt", state)
    found = load_checkpoint(tmp_path / "deep" / "state.pt", CPU)
    assert found is not None
    assert torch.equal(found.pop("weights"), state.pop("weights"))  # type: ignore[arg-type]
    assert found == state
    assert load_checkpoint(tmp_path / "none.pt", CPU) is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_corrupt_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"weights": torch.randn(1000)})
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(MaskDMError, match=r"state\.pt: corrupt checkpoint .*delete it") as caught:
        load_checkpoint(path, CPU)
    assert "\n" not in str(caught.value)


class FullDisk:
    """A file on a disk that takes `room` bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, content: Any) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self.file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 500, 3000])
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"step": 1})
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: save(state, FullDisk(file, room)))
    with pytest.raises(MaskDMError, match=r"state\.pt: cannot write it: No space left on device"):
        save_checkpoint(path, {"step": 2, "weights": torch.randn(1000)})
    assert load_checkpoint(path, CPU) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_a_full_disk_keeps_the_previous_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: UViT
) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    save_snapshot(tmp_path / "weights", network, None)
    before = network_sha256(load_snapshot(tmp_path / "weights", CPU))
    monkeypatch.setattr(UViT, "save_pretrained", full)
    with pytest.raises(MaskDMError, match="weights: cannot save the weights: No space left on device"):
        save_snapshot(tmp_path / "weights", network, None)
    assert network_sha256(load_snapshot(tmp_path / "weights", CPU)) == before
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_a_network_of_a_class_that_is_not_known_is_named(tmp_path: Path, network: UViT) -> None:
    save_snapshot(tmp_path / "weights", network, None)
    config = tmp_path / "weights" / "config.json"
    config.write_text(config.read_text().replace('"UViT"', '"Mamba"'))
    with pytest.raises(MaskDMError, match=r"config\.json: .*_class_name=Mamba; allowed: UViT, DiT, UNet"):
        load_snapshot(tmp_path / "weights", CPU)
    config.write_text("{}")
    with pytest.raises(MaskDMError, match=r"config\.json: cannot read it: '_class_name'"):
        load_snapshot(tmp_path / "weights", CPU)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_unusable_weights_are_named(tmp_path: Path, network: UViT, damage: str) -> None:
    folder = tmp_path / "weights"
    save_snapshot(folder, network, None)
    (weights,) = folder.glob("*.safetensors")
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text(config.replace('"depth": 3', '"depth": 5'))
    with pytest.raises(MaskDMError, match=r"weights[:/]") as caught:
        load_snapshot(folder, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tuned", "v", "edm", "paper-cosine"])
def test_weights_say_what_they_predict(tmp_path: Path, network: UViT, name: str) -> None:
    objective = load_recipe(name).objective
    save_snapshot(tmp_path / "said", network, objective)
    assert load_objective(tmp_path / "said") == objective
    save_snapshot(tmp_path / "imported", network, None)
    assert load_objective(tmp_path / "imported") is None
    (tmp_path / "said" / "objective.json").write_text('{"name": "flow", "time_distribution": "odd"}')
    with pytest.raises(MaskDMError, match=r"objective\.json"):
        load_objective(tmp_path / "said")


def test_a_missing_folder_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(MaskDMError, match="nowhere: no such folder"):
        load_snapshot(tmp_path / "nowhere", CPU)


def test_a_fingerprint_changes_with_every_part_and_not_with_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": 2}, "x") == fingerprint({"b": 2, "a": 1}, "x")
    assert len({fingerprint({"a": 1}), fingerprint({"a": 2}), fingerprint({"a": 1}, 1), fingerprint()}) == 4


def test_a_failed_write_says_what_the_system_said(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(MaskDMError, match=r"cannot write it: (File exists|Not a directory)"):
        files.write_atomically(tmp_path / "folder" / "file", lambda file: file.write(b"x"))
