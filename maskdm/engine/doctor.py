"""What a run needs, checked one by one: what is wrong, and the fix."""

import json
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock, Timeout

from maskdm.config.params import Params
from maskdm.config.reading import load_params, recipe_of
from maskdm.datasets.prepared import PreparedData
from maskdm.engine.project import require_data_of
from maskdm.evaluation.extractors import load_extractor
from maskdm.evaluation.metrics import ReferenceKey, load_reference
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reason, sqlite_path
from maskdm.runtime.paths import PREPARED, REFERENCE, ROOT
from maskdm.runtime.threads import count_cores
from maskdm.runtime.units import si
from maskdm.runtime.urls import without_passwords
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import read_records

Verdict = Literal["ok", "hint", "wrong"]  # hint: nothing is broken, but a command will be needed, or a number is low

ROOM = 5e9  # bytes that a run of the default profile needs, with its caches
OLDEST = (3, 11)


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Verdict
    found: str
    fix: str = ""  # a command, or what to do; empty: nothing is to be done


def examine() -> list[Finding]:
    """All findings, in the order in which a run would meet them. It changes nothing."""
    return [finding for check in CHECKS for finding in _guarded(check)]


def _guarded(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What a check found; what it trips over is a finding, too."""
    name = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        return list(check())
    except MaskDMError as error:
        what, _, fix = str(error).partition("; ")
        return [Finding(name, "wrong", what, fix)]
    except OSError as error:
        return [Finding(name, "wrong", f"{error.filename or name}: {reason(error)}", "see who owns it, and what it is")]


def check_python() -> Iterator[Finding]:
    """Its version, and where it is."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST:
        yield Finding("python", "wrong", version, f"install Python {'.'.join(map(str, OLDEST))} or newer, then `make`")
    else:
        yield Finding("python", "ok", f"{version}, {sys.executable}")


def check_packages() -> Iterator[Finding]:
    """Installed versions against `constraints.txt`, which a run was tested with."""
    if not (file := ROOT / "constraints.txt").is_file():
        yield Finding("packages", "hint", f"{file}: no such file, so no versions to compare with")
        return
    lines = re.findall(r"^([\w.-]+)==(\S+)$", file.read_text(encoding="utf-8"), re.M)
    others, missing = [], []
    for name, wanted in lines:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if found.partition("+")[0] != wanted.partition("+")[0]:
            others.append(f"{name} {found} (tested: {wanted})")
    fix = "pip install -c constraints.txt -e '.[dev]'"
    if others:
        yield Finding("packages", "hint", f"other versions than tested: {_first(others)}", fix)
    if missing and (needed := _needed() & {_normal(name) for name in missing}):
        yield Finding("packages", "wrong", f"not installed: {_first(sorted(needed))}", fix)
    elif not others:
        yield Finding("packages", "ok", f"{len(lines) - len(missing)} as tested")


def check_machine() -> Iterator[Finding]:
    """Cores and GPUs."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(gpus))
        yield Finding("GPU", "ok", names)
    elif shutil.which("nvidia-smi") and torch.version.cuda is None:
        fix = "install a build of PyTorch with CUDA (pytorch.org/get-started)"
        yield Finding("GPU", "wrong", "there is an NVIDIA driver, but this PyTorch knows no CUDA", fix)
    elif shutil.which("nvidia-smi"):
        fix = "compare `nvidia-smi` with torch.version.cuda: the driver must be as new; unset CUDA_VISIBLE_DEVICES"
        yield Finding("GPU", "wrong", "there is an NVIDIA driver, but PyTorch sees no GPU", fix)
    else:
        yield Finding("GPU", "ok", f"none; training runs on {count_cores()} CPU cores")


def check_disk() -> Iterator[Finding]:
    """Room, and the right to write, where a run writes."""
    free = shutil.disk_usage(ROOT).free
    if free < ROOM:
        fix = "free some; `dvc gc -w` drops old runs, and links move data/, runs/, work/ and .dvc/cache to another disk"
        yield Finding("disk", "hint", f"{si(free, 'B')} free", fix)
    else:
        yield Finding("disk", "ok", f"{si(free, 'B')} free")
    for name in (".", "data", "runs", "work", "records", "reports", ".dvc"):
        folder = ROOT / name
        if folder.exists() and not os.access(folder, os.W_OK):
            yield Finding("disk", "wrong", f"{folder.resolve()}: may not be written", f"chmod -R u+w {folder}")


def check_settings() -> Iterator[Finding]:
    """`params.yaml` and its recipe."""
    params = load_params(ROOT / "params.yaml")
    recipe_of(params, ROOT)
    yield Finding("settings", "ok", f"params.yaml: {', '.join(params.arms)}; recipe {params.recipe}")


def check_data() -> Iterator[Finding]:
    """The prepared data, and whether it is of these settings."""
    params = load_params(ROOT / "params.yaml")
    if not PREPARED.is_dir():
        yield Finding("data", "hint", f"{PREPARED}: not prepared yet", "dvc repro prepare")
        return
    data = PreparedData.open(PREPARED)
    try:
        require_data_of(params, data)
    except MaskDMError as error:
        yield Finding("data", "hint", str(error), "dvc repro prepare")
        return
    sizes = f"{data.info['train']} training and {data.info['heldout']} held-out images"
    yield Finding("data", "ok", f"{params.data.title}: {sizes}")


def check_reference() -> Iterator[Finding]:
    """The features that samples are compared with."""
    params = load_params(ROOT / "params.yaml")
    if not PREPARED.is_dir() or not REFERENCE.is_dir():
        yield Finding("reference", "hint", f"{REFERENCE}: not made yet", "dvc repro reference")
        return
    key = _reference_key(params)
    load_reference(REFERENCE, key)
    yield Finding("reference", "ok", f"{key.count} images, {key.extractor}")


def check_dvc() -> Iterator[Finding]:
    """DVC's command, its repository, and a lock file that a kill has torn."""
    if not shutil.which("dvc"):
        yield Finding("DVC", "wrong", "no command `dvc` on the PATH", "activate the environment: . .venv/bin/activate")
        return
    if not (ROOT / ".dvc").is_dir():
        yield Finding("DVC", "wrong", "no .dvc/ in the project", "dvc init, or dvc init --no-scm without git")
        return
    lock = ROOT / ".dvc" / "tmp" / "rwlock"
    try:
        json.loads(lock.read_text(encoding="utf-8") or "{}") if lock.is_file() else None
    except ValueError:
        yield Finding("DVC", "wrong", f"{lock} is torn: `dvc repro` would stop at it", "make unlock")
        return
    if not (ROOT / ".git").exists() and not _has_no_scm():
        yield Finding("DVC", "wrong", "the project is no git repository, and DVC expects one", "make scm")
        return
    yield Finding("DVC", "ok", f"{metadata.version('dvc')}; no torn lock file")


def check_records() -> Iterator[Finding]:
    """The record files."""
    records = read_records(ROOT)
    yield Finding("records", "ok", f"{len(records)} trials")


def check_mlflow() -> Iterator[Finding]:
    """The store, and a lock that a process holds."""
    lock = FileLock(ROOT / "mlflow.db.lock", timeout=0)
    if Path(lock.lock_file).exists():
        try:
            lock.acquire()
            lock.release()
        except Timeout:
            yield Finding("MLflow", "hint", f"{lock.lock_file}: a process writes to the store now")
            return
    uri = mlflow_store.store_uri(ROOT)
    if not uri.startswith("sqlite"):
        yield Finding("MLflow", "ok", f"a server: {without_passwords(uri)}; `maskdm sync` reaches it, or says why not")
        return
    path = sqlite_path(uri)
    if not path.is_file():
        yield Finding("MLflow", "hint", f"{path}: not there yet", "maskdm sync")
        return
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            (said,) = database.execute("PRAGMA quick_check").fetchone()
    except sqlite3.DatabaseError as error:
        said = str(error)
    if said == "ok":
        yield Finding("MLflow", "ok", f"{path}")
    else:
        yield Finding("MLflow", "wrong", f"{path}: {said}", "delete it, then `maskdm sync` makes it again")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_machine,
    check_disk,
    check_settings,
    check_data,
    check_reference,
    check_dvc,
    check_records,
    check_mlflow,
)


def _reference_key(params: Params) -> ReferenceKey:
    extractor = load_extractor(params.evaluation, torch.device("cpu"))
    return ReferenceKey.of(extractor, PreparedData.open(PREPARED).info["sha256"], params.evaluation)


def _has_no_scm() -> bool:
    """Whether DVC is told that there is no git."""
    files = (ROOT / ".dvc" / name for name in ("config", "config.local"))
    return any("no_scm = true" in file.read_text(encoding="utf-8").lower() for file in files if file.is_file())


def _needed() -> set[str]:
    """The packages that this one cannot do without."""
    lines = metadata.requires("maskdm") or []
    return {_normal(re.split(r"[^\w.-]", line)[0]) for line in lines if "extra ==" not in line}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
