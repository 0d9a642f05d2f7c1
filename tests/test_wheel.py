"""The wheel: it holds all of the library and nothing else, and its command starts without the project beside it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.imports import PROJECT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, with the setuptools that is installed: without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE.md"):
        shutil.copy2(PROJECT / name, source)
    for name in ("maskdm", "pipeline", "tests", "docs"):  # the last three must stay out
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    [built] = out.glob("*.whl")
    return built


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_the_library_its_types_and_licenses_and_nothing_else(wheel: Path) -> None:
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    own = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "maskdm").rglob("*") if path.is_file()}
    assert files == {name for name in own if "__pycache__" not in name}
    assert "maskdm/py.typed" in files
    licenses = {name.rpartition("/")[2] for name in zipfile.ZipFile(wheel).namelist() if "/licenses/" in name}
    assert licenses == {"LICENSE", "NOTICE.md"}


def test_the_command_of_an_installed_wheel_starts_outside_of_the_project(wheel: Path, tmp_path: Path) -> None:
    """Installed without its dependencies, which are those of this environment: they take minutes to install."""
    _pip("install", "--no-deps", "--no-index", "--target", str(tmp_path / "installed"), str(wheel))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    where = [sys.executable, "-c", "import maskdm; print(maskdm.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(tmp_path / "installed")
    command = [sys.executable, str(tmp_path / "installed" / "bin" / "maskdm"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "profile" in done.stdout
