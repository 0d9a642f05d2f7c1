"""Hostile checkpoints and folders of weights: they are loaded, or refused in one line; nothing in them is run."""

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save as as_safetensors

from maskdm.engine.import_weights import import_weights
from maskdm.networks.network import Network
from maskdm.networks.uvit import UViT
from maskdm.training.checkpoint import load_checkpoint, load_snapshot, save_snapshot
from tests.conftest import MODELS
from tests.engine.test_import_weights import checkpoint
from tests.fuzz.harness import SCALARS, amounts, answer_of, changed_bytes, changed_tree, everything, fuzz, randoms
from tests.networks.test_authors import HEADS, their_weights

CPU = torch.device("cpu")
TENSORS = [torch.zeros(()), torch.full((3,), float("nan")), torch.zeros(0, 4), torch.ones(2, 2, dtype=torch.int64)]
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"


class Touch:
    """What a pickle may hold: loaded without care, it runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def as_checkpoint(state: Any, random: Random) -> bytes:
    """What `torch.save` writes, of a changed state or with changed bytes."""
    file = io.BytesIO()
    zipped = random.random() < 0.8
    if random.random() < 0.7:
        torch.save(changed_tree(state, random, [*SCALARS, *TENSORS]), file, _use_new_zipfile_serialization=zipped)
        return file.getvalue()
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return changed_bytes(file.getvalue(), random)


def network() -> UViT:
    return UViT(image_size=(8, 8), patch_size=2, in_channels=1, embed_dim=16, depth=3, num_heads=2)


@amounts(400)
def test_checkpoints_of_the_authors(examples: int, tmp_path: Path) -> None:
    path, new = tmp_path / "model.pt", tmp_path / "new"
    weights = their_weights()
    torch.save(weights, path)
    assert answer_of(lambda: import_weights(path, tmp_path / "whole", HEADS)) == "taken"
    shutil.rmtree(tmp_path / "whole")
    states = [weights, checkpoint(weights, None), checkpoint(weights, their_weights())]

    def check(random: Random) -> str:
        try:
            path.write_bytes(as_checkpoint(random.choice(states), random))
        except Exception:  # it cannot be written
            return "not written"
        heads = random.choice((None, HEADS, HEADS, 0, -1, 3, 10**9, 10**30))
        answer = answer_of(lambda: import_weights(path, new, heads))
        assert new.exists() == (answer == "taken")
        for file in sorted(new.rglob("*"), reverse=True):
            file.unlink()
        if new.exists():
            new.rmdir()
        assert list(tmp_path.iterdir()) == [path]
        return answer

    fuzz(examples, "checkpoints of the authors", randoms(), check)


@amounts(150)
def test_a_pickle_that_calls_something_is_not_run(examples: int, tmp_path: Path) -> None:
    path, touched = tmp_path / "model.pt", tmp_path / "touched"

    def check(random: Random) -> str:
        state = {"step": 1, "trainee": random.choice((Touch(touched), [Touch(touched)], {"a": Touch(touched)}))}
        match random.randrange(4):
            case 0:
                path.write_bytes(pickle.dumps(state, protocol=random.randrange(2, 6)))
            case 1 | 2:
                torch.save(state, path, _use_new_zipfile_serialization=random.random() < 0.5)
            case _:
                path.write_bytes(changed_bytes(pickle.dumps(state, protocol=2), random))
        answers = {
            answer_of(lambda: load_checkpoint(path, CPU)),
            answer_of(lambda: import_weights(path, tmp_path / "n")),
        }
        assert not touched.exists()
        return " and ".join(sorted(answers))

    fuzz(examples, "pickles that call something", randoms(), check)


@pytest.mark.parametrize("name", MODELS)
@amounts(250, few=4)
def test_folders_of_weights(name: str, examples: int, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    save_snapshot(folder, small(name), None)
    assert answer_of(lambda: load_snapshot(folder, CPU)) == "taken"
    config, weights = json.loads((folder / CONFIG).read_bytes()), (folder / WEIGHTS).read_bytes()

    def check(random: Random) -> str:
        (folder / CONFIG).write_text(json.dumps(config))
        (folder / WEIGHTS).write_bytes(weights)
        if random.random() < 0.7:
            try:
                (folder / CONFIG).write_text(json.dumps(changed_tree(config, random)))
            except (RecursionError, UnicodeEncodeError, ValueError):  # what JSON cannot write
                (folder / CONFIG).write_bytes(b"[" * 100_000)
        else:
            file = random.choice((CONFIG, WEIGHTS, WEIGHTS))
            content = (folder / file).read_bytes()
            # Of safetensors above all the header, which says what is where.
            head = 8 + int.from_bytes(content[:8], "little") if file == WEIGHTS else len(content)
            changed = changed_bytes(content[:head], random)
            (folder / file).write_bytes(changed + content[head:])
        before = everything(folder)
        answer = answer_of(lambda: load_snapshot(folder, CPU))
        assert everything(folder) == before
        return answer

    fuzz(examples, f"folders of weights, {name}", randoms(), check)


def small(name: str) -> Network:
    from maskdm.networks.catalogue import NETWORKS

    sizes = {key: value for key, value in MODELS[name].items() if key not in ("name", "class_conditional")}
    return NETWORKS[name](image_size=(8, 8), in_channels=1, num_classes=None, **sizes)


# --- what one would not meet by chance --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        {"embed_dim": 2**30, "num_heads": 2},
        {"depth": 10**9 + 1},
        {"depth": 999_999},
        {"image_size": [2**20, 2**20]},
        {"in_channels": 2**40},
        {"num_classes": 2**50},
    ],
    ids=str,
)
def test_a_config_of_a_huge_network_takes_neither_memory_nor_time(sizes: dict[str, Any], tmp_path: Path) -> None:
    save_snapshot(tmp_path / "w", network(), None)
    config = json.loads((tmp_path / "w" / CONFIG).read_bytes())
    (tmp_path / "w" / CONFIG).write_text(json.dumps(config | sizes))
    assert answer_of(lambda: load_snapshot(tmp_path / "w", CPU)) == "refused"


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin"])
def test_weights_that_are_a_pickle_are_not_read(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "w"
    save_snapshot(folder, network(), None)
    (folder / WEIGHTS).unlink()
    torch.save(network().state_dict(), folder / name)
    assert answer_of(lambda: load_snapshot(folder, CPU)) == "refused"


def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    save_snapshot(folder, network(), None)
    (folder / WEIGHTS).rename(tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(network().state_dict(), "../elsewhere.safetensors")}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert answer_of(lambda: load_snapshot(folder, CPU)) == "refused"


def test_a_checkpoint_that_unpacks_to_very_much_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, file)
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, bytes(1 << 28) if name.endswith("data/0") else source.read(name))
    assert answer_of(lambda: import_weights(path, tmp_path / "new")) == "refused"


def test_safetensors_of_nothing_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    save_snapshot(folder, network(), None)
    (folder / WEIGHTS).write_bytes(as_safetensors({}))
    assert answer_of(lambda: load_snapshot(folder, CPU)) == "refused"
