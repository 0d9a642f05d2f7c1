"""Machines and places that are not ours: odd paths, no git, read-only images, no shared memory, no apt-get."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskdm import cli
from maskdm.datasets import fashion_mnist
from maskdm.datasets.prepare import prepare
from maskdm.runtime.errors import MaskDMError
from tests.conftest import PARAMS
from tests.datasets.test_survey import pictures
from tests.imports import PROJECT
from tests.raw_data import place, settings
from tests.workspace import ENVIRONMENT, write_params

PLACE = "Größe, 数据 & co"  # spaces, a comma, letters of two scripts, and a character that shells read
NEEDED = ("sh", "make", "printf", "test", "rm", "env", "mkdir", "cat")  # git, apt-get and compilers are not among them

# A device folder without /dev/shm, and the images behind a mount that nobody can write to.
BARE = """
set -e
mkdir "$SCRATCH/dev" && mount -t tmpfs none "$SCRATCH/dev"
for name in null zero full random urandom tty; do
    touch "$SCRATCH/dev/$name" && mount --bind "/dev/$name" "$SCRATCH/dev/$name"
done
mount --rbind "$SCRATCH/dev" /dev
mount --bind "$IMAGES" "$IMAGES" && mount -o remount,ro,bind "$IMAGES"
test ! -e /dev/shm && ! touch "$IMAGES/new" 2>/dev/null
PATH="$BARE_PATH"
exec "$@"
"""


def test_fashion_mnist_without_network_and_apt_get_says_what_to_place_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion_mnist, "OFFICIAL_URL", (tmp_path / "none").as_uri())
    monkeypatch.setattr(fashion_mnist, "PACKAGE_FOLDER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MaskDMError) as caught:
        prepare(settings("fashion_mnist", channels=1, image_size=32), Path("data/prepared"), Path("data/raw"))
    said = str(caught.value)
    assert "apt-get: there is none on this machine" in said
    home = Path("data/raw/fashion_mnist")
    assert said.endswith(
        f"place the four *-ubyte.gz files from {fashion_mnist.PAGE} in {home}, or set data.root to their folder"
    )
    assert "\n" not in said
    assert not Path("data/prepared").exists()


def test_on_windows_a_command_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == (
        "error: Windows: processes there start and stop otherwise; allowed: Linux, macOS, or WSL 2\n"
    )


@pytest.mark.parametrize("makefile", ["Makefile", "../project/Makefile"])
def test_make_finds_its_scripts_in_an_odd_place(tmp_path: Path, makefile: str) -> None:
    project = tmp_path / PLACE / "project"
    for name in ("Makefile", "pipeline/unlock.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, project / name)
    folder = project if makefile == "Makefile" else project.with_name("a copy of it")
    folder.mkdir(exist_ok=True)
    (folder / "dvc.lock").write_text("schema: '2.0'\nstages: {to")
    done = subprocess.run(["make", "-f", makefile, "unlock"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (folder / "dvc.lock").exists(), "it was torn"


def from_archive(folder: Path) -> None:
    """What a user has who downloads the project in place of cloning it."""
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=PROJECT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
    for name in ("dvc.lock", "records", "reports"):  # of the committed settings
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_the_whole_run_in_an_odd_place_without_git_shared_memory_or_a_writable_image_folder(tmp_path: Path) -> None:
    project, images = tmp_path / PLACE / "my project", tmp_path / PLACE / "Meine Bilder"
    from_archive(project)
    place(images, pictures(160))
    data = PARAMS["data"] | {"name": "image_folder", "root": str(images), "image_size": 8, "channels": 3}
    write_params(project, data=data)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in NEEDED:
        (bin_folder / name).symlink_to(str(shutil.which(name)))
    path = f"{Path(sys.executable).parent}:{bin_folder}"
    assert shutil.which("git", path=path) is None
    environment = ENVIRONMENT | {"SCRATCH": str(tmp_path), "IMAGES": str(images), "BARE_PATH": path}

    def run(folder: Path, *command: str) -> str:
        bare = ["unshare", "--mount", "sh", "-c", BARE, "sh", *command]
        done = subprocess.run(bare, cwd=folder, env=environment, capture_output=True, text=True)
        shutil.rmtree(tmp_path / "dev")
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    run(project, "make", "scm", "unlock")
    said = run(project / "docs", "dvc", "repro", "../dvc.yaml")
    assert "Running stage '../dvc.yaml:report'" in said
    assert "warning: " not in said
    assert "staged" in (project / "reports" / "report.md").read_text()
    assert (project / "reports" / "index.html").is_file()
    assert "Running stage" not in run(project, "dvc", "repro")
    assert "FAIL" not in run(project / "docs", "maskdm", "compare", "staged", "scratch")
