"""Files that a kill or a full disk cannot spoil: checkpoints (the whole state) and snapshots (EMA weights alone)."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from maskdm.networks.catalogue import network_class
from maskdm.networks.network import Network
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import check_checksums, folders_above, reading, reason, write_atomically, write_checksums

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
        with zipfile.ZipFile(path) as archive:  # torch does not look at its checksums
            if torn := archive.testzip():
                raise zipfile.BadZipFile(torn)
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds: zip, pickle, EOF, runtime
        raise MaskDMError(
            f"{path}: corrupt checkpoint ({type(error).__name__}); delete it to start this phase again"
        ) from error
    if not isinstance(state, dict):
        raise MaskDMError(f"{path}: not a checkpoint; delete it to start this phase again")
    return state


def save_snapshot(folder: Path, network: Network) -> None:
    """Write the network's weights and config to `folder`, all or nothing; `load_snapshot` reads them.

    Raises:
        MaskDMError: it cannot be written.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with folders_above(folder):
            try:
                network.save_pretrained(temporary)
                write_checksums(temporary, "*.safetensors")  # which have none of their own
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except Exception as error:  # safetensors has an error type of its own
        raise MaskDMError(f"{folder}: cannot save the weights: {reason(error)}") from error


def load_snapshot(folder: Path, device: torch.device) -> Network:
    """The network saved in `folder`, of the class its config names, on `device`; every weight must be there and fit.

    Raises:
        MaskDMError: the folder lacks a file, or a file is corrupt or does not fit the config.
    """
    if not folder.is_dir():
        raise MaskDMError(f"{folder}: no such folder; allowed: one with config.json and safetensors")
    check_checksums(folder, REMEDY)
    with reading(config := folder / "config.json", REMEDY):
        kind = network_class(str(dict(json.loads(config.read_bytes()))["_class_name"]))
    try:
        network, loading = kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # OSError, SafetensorError, RuntimeError: all mean the folder is unusable
        raise MaskDMError(f"{folder}: no usable weights: {reason(error)}; {REMEDY}") from error
    wrong = [name for names in loading.values() for name in names]
    if wrong:
        raise MaskDMError(f"{folder}: the weights do not fit the config: {wrong[0]} (of {len(wrong)})")
    return network.to(device)


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
