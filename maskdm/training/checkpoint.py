"""Files that a kill or a full disk cannot spoil: checkpoints (the whole state) and snapshots (EMA weights alone)."""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from pydantic import TypeAdapter
from safetensors import safe_open

from maskdm.config.objective import ObjectiveSettings
from maskdm.networks.catalogue import network_class
from maskdm.networks.network import Network
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import check_checksums, folders_above, reading, reason, write_atomically, write_checksums

OBJECTIVE = "objective.json"  # beside the weights: they draw noise for whoever takes them for others
REMEDY = "`dvc repro -f` with the stage that writes it makes it again"


def fingerprint(*parts: Any) -> str:
    """16 hex digits that change when any part (JSON-like) changes: names the folder of a resumable run."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace `path` by `state` in one step: at every moment it is the old checkpoint or the new one, whole.

    Raises:
        MaskDMError: it cannot be written (a full disk, say). The previous checkpoint stays.
    """
    write_atomically(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The state saved at `path`; None if there is none.

    Raises:
        MaskDMError: the file is truncated or is no checkpoint.
    """
    if not path.is_file():
        return None
    try:
        with ZipFile(path) as archive:  # torch does not look at its checksums
            if torn := archive.testzip():
                raise BadZipFile(torn)
        state = read_tensors(path, device)
    except Exception as error:  # torch raises many kinds: zip, pickle, EOF, runtime
        raise MaskDMError(
            f"{path}: corrupt checkpoint ({type(error).__name__}); delete it to start this phase again"
        ) from error
    if not isinstance(state, dict):
        raise MaskDMError(f"{path}: not a checkpoint; delete it to start this phase again")
    return state


def read_tensors(path: Path, device: torch.device) -> Any:
    """What `torch.save` wrote; nothing in the file is run.

    Raises:
        Exception: nearly any, if the file is damaged, or none.
    """
    if is_zipfile(path):
        with ZipFile(path) as archive:  # `torch.save` packs nothing: so what is read is no larger than the file
            packed = [info.filename for info in archive.infolist() if info.compress_type != ZIP_STORED]
        if packed:
            raise ValueError(f"{packed[0]} is compressed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles of another kind than its own, before it refuses them
        return torch.load(path, map_location=device, weights_only=True)


def save_snapshot(folder: Path, network: Network, objective: ObjectiveSettings | None) -> None:
    """Write the network's weights and config to `folder`, all or nothing; `load_snapshot` reads them.

    Args:
        folder: to write.
        network: whose weights.
        objective: what it predicts, which `load_objective` reads; None: nobody knows, as of imported weights.

    Raises:
        MaskDMError: it cannot be written.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with folders_above(folder):
            try:
                network.save_pretrained(temporary, max_shard_size="1TB")  # one file
                if objective is not None:
                    (temporary / OBJECTIVE).write_text(objective.model_dump_json() + "\n", encoding="utf-8")
                write_checksums(temporary, "*.safetensors")  # which have none of their own
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except Exception as error:  # safetensors has an error type of its own
        raise MaskDMError(f"{folder}: cannot save the weights: {reason(error)}") from error


def load_objective(folder: Path) -> ObjectiveSettings | None:
    """What the network saved in `folder` predicts; None: it is not known.

    Raises:
        MaskDMError: the file that says so is damaged.
    """
    if not (place := folder / OBJECTIVE).is_file():
        return None
    with reading(place, REMEDY):
        found: ObjectiveSettings = TypeAdapter(ObjectiveSettings).validate_json(place.read_bytes())
    return found


def load_snapshot(folder: Path, device: torch.device) -> Network:
    """The network saved in `folder`, of the class its config names, on `device`; every weight must be there and fit.

    Raises:
        MaskDMError: the folder lacks a file, or a file is corrupt or does not fit the config.
    """
    if not folder.is_dir():
        raise MaskDMError(f"{folder}: no such folder; allowed: one with config.json and safetensors")
    check_checksums(folder, REMEDY)
    with reading(place := folder / "config.json", REMEDY):
        config = dict(json.loads(place.read_bytes()))
        kind = network_class(str(config["_class_name"]))
    if (folder / f"{SAFETENSORS_WEIGHTS_NAME}.index.json").exists():  # it could name files of any folder
        raise MaskDMError(f"{folder}: weights in several files; allowed: {SAFETENSORS_WEIGHTS_NAME} alone")
    try:
        _require_fit(kind, config, folder / SAFETENSORS_WEIGHTS_NAME)
        network = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)
    except MisfitError as error:
        raise MaskDMError(f"{folder}: the weights do not fit the config: {error}") from None
    except Exception as error:  # OSError, SafetensorError, RuntimeError: all mean the folder is unusable
        raise MaskDMError(f"{folder}: no usable weights: {reason(error)}; {REMEDY}") from error
    return network.to(device)


class MisfitError(Exception):
    """A config and weights that are not of one network."""


def _require_fit(kind: type[Network], config: dict[str, Any], weights: Path) -> None:
    """Compare all shapes before anything is allocated: a config may claim a network of any size.

    Raises:
        MisfitError: a weight is missing, has another shape, or no place in the network.
        Exception: nearly any, if a file is damaged.
    """
    with safe_open(weights, framework="pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dictionary
    for key in ("depth", "layers_per_block"):
        if config.get(key, 1) > len(stored):
            raise MisfitError(f"{key}={config[key]} with {len(stored)} weights")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that are 0
        expected = {name: tuple(weight.shape) for name, weight in kind.from_config(config).state_dict().items()}
    if wrong := sorted(n for n in stored.keys() | expected.keys() if stored.get(n) != expected.get(n)):
        raise MisfitError(f"{wrong[0]} (of {len(wrong)})")


def snapshot_folder(folder: Path, share: float) -> Path:
    """Where the snapshot at `share` of the budget lies below `folder`."""
    return folder / "snapshots" / f"{round(1000 * share):04d}"


def network_sha256(network: Network) -> str:
    """A hash of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
