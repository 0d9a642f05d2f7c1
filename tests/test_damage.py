"""A file that a power cut or a bad disk has spoilt: one line names it and says what to do, for every kind of file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskdm.datasets.prepared import PreparedData
from maskdm.engine.judge import cached
from maskdm.evaluation.metrics import Reference, ReferenceKey, load_reference
from maskdm.networks.uvit import UViT
from maskdm.reporting.search_page import read_table
from maskdm.runtime.errors import MaskDMError
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import Machine, Record, fold_records, read_records, write_record
from maskdm.training.checkpoint import load_checkpoint, load_snapshot, save_checkpoint, save_snapshot

CPU = torch.device("cpu")
KEY = ReferenceKey("0" * 64, "effnet_lite0", "0" * 64, 32, 8, 3)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def nothing(content: bytes) -> bytes:
    return b""


def flipped(content: bytes) -> bytes:
    """Every bit of a stretch at the beginning."""
    return bytes(byte ^ 255 for byte in content[:200]) + content[200:]


def one_bit(content: bytes) -> bytes:
    """A digit becomes another one, where there are digits: what still looks right."""
    place = content.find(b"0.5") + 2 if b"0.5" in content else len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def write_prepared(folder: Path) -> None:
    info: dict[str, Any] = {"name": "x", "source": "x", "files": {}, "train": 3, "heldout": 1, "shape": [1, 4, 4]}
    info |= {"num_classes": None, "class_names": None, "sha256": "0" * 64, "skipped": []}
    (folder / "dataset.json").write_text(json.dumps(info))
    np.save(folder / "images.npy", np.zeros((4, 1, 4, 4), np.uint8))


def write_records(folder: Path) -> None:
    record = Record("study", "one", "one", "1234", {}, {"name": "x"}, {}, [{"loss": 1.0}])
    write_record(folder, record, Machine("2026-01-01T00:00:00+00:00", {}, {}, {}, 1.0, None, None, [1.0]))


def write_folded(folder: Path) -> None:
    record = Record("search", "trials/0000", "one", "1234", {}, {"name": "x"}, {}, [{"loss": 0.5}])
    write_record(folder, record, Machine("2026-01-01T00:00:00+00:00", {}, {}, {}, 1.0, None, None, [1.0]))
    fold_records(folder, "search", "trials", keep={"trials/0000"})


def write_network(folder: Path) -> None:
    network = UViT(image_size=(8, 8), patch_size=2, in_channels=1, embed_dim=16, depth=3, num_heads=2)
    save_snapshot(folder / "weights", network, None)


# file -> what writes it, what reads it, and a part of the remedy
FILES: dict[str, tuple[Callable[[Path], object], Callable[[Path], object], str]] = {
    "dataset.json": (write_prepared, PreparedData.open, "dvc repro -f prepare"),
    "images.npy": (write_prepared, PreparedData.open, "dvc repro -f prepare"),
    "phase0.pt": (
        lambda folder: save_checkpoint(folder / "phase0.pt", {"step": 1, "weights": torch.ones(100)}),
        lambda folder: load_checkpoint(folder / "phase0.pt", CPU),
        "delete it",
    ),
    "weights/config.json": (write_network, lambda folder: load_snapshot(folder / "weights", CPU), "dvc repro -f"),
    "weights/diffusion_pytorch_model.safetensors": (
        write_network,
        lambda folder: load_snapshot(folder / "weights", CPU),
        "dvc repro -f",
    ),
    KEY.filename: (
        lambda folder: Reference.of(KEY, np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)).save(folder),
        lambda folder: load_reference(folder, KEY),
        "dvc repro -f reference",
    ),
    "records/study/one.json": (write_records, read_records, "delete it"),
    "records/study/one.machine.json": (write_records, read_records, "delete it"),
    "records/search/trials.jsonl": (write_folded, read_records, "delete"),
    "0.5.json": (
        lambda folder: cached(folder / "0.5.json", lambda: {"fd": 1.5}),
        lambda folder: cached(folder / "0.5.json", lambda: pytest.fail("it is there")),
        "delete it",
    ),
    "mlflow.db": (mlflow_store.Store, mlflow_store.sync, "delete it"),
    "trials.csv": (
        lambda folder: (folder / "trials.csv").write_text("trial,state\n0,complete\n"),
        lambda folder: read_table(folder / "trials.csv", "search"),
        "the stage search writes it",
    ),
}
# A new database; a table of one column; no records, so that all is done again.
STILL_WHOLE = {("mlflow.db", nothing), ("trials.csv", half), ("records/search/trials.jsonl", nothing)}
# Of a single bit, only files whose content has a checksum: DVC hashes the data, and a line of records has its own.
SUMMED = (
    "phase0.pt",
    "weights/diffusion_pytorch_model.safetensors",
    KEY.filename,
    "0.5.json",
    "records/search/trials.jsonl",
)
CASES = [(file, damage) for file in FILES for damage in (half, nothing, flipped) if (file, damage) not in STILL_WHOLE]
CASES += [(file, one_bit) for file in SUMMED]


@pytest.mark.parametrize(("file", "damage"), CASES, ids=[f"{file}-{damage.__name__}" for file, damage in CASES])
def test_a_damaged_file_is_one_line_with_its_name_and_what_to_do(
    tmp_path: Path, file: str, damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write, read, remedy = FILES[file]
    write(tmp_path)
    read(tmp_path)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MaskDMError) as caught:
        read(tmp_path)
    named = path.parent if path.parent.name == "weights" else path
    assert str(named) in str(caught.value)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)
