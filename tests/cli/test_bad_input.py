"""Bad input of every command: one line on stderr, a status that is not 0, and nothing half-written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run

WEIGHTS = "runs/train/scratch/0/weights"


def empty(project: Path) -> None:
    (project / "bad").mkdir()


def pdfs(project: Path) -> None:
    (project / "bad").mkdir()
    (project / "bad" / "one.pdf").write_bytes(b"%PDF-1.7")


def damaged_weights(project: Path) -> None:
    shutil.copytree(project / WEIGHTS, project / "bad")
    file = project / "bad" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def a_file_in_the_way(project: Path) -> None:
    (project / "bad").write_text("no folder")


def damaged_record(project: Path) -> None:
    (project / "bad").mkdir()
    (project / "bad" / "record.json").write_text('{"stage": ')


def nothing(project: Path) -> None:
    pass


def unprepared(project: Path) -> None:
    shutil.rmtree(project / "data" / "prepared")


Case = tuple[str, Callable[[Path], None], str]
CASES: list[Case] = [
    # a wrong path, an unknown arm
    ("sample bad", nothing, "bad: neither a folder nor an arm; allowed: scratch, staged"),
    ("sample staged", nothing, "staged: no weights with seed 0, 1 in runs/; `dvc repro finetune@staged`"),
    ("interpolate bad", nothing, "bad: neither a folder nor an arm"),
    ("evaluate bad", nothing, "bad: neither weights nor an arm"),
    ("evaluate scratch bad", nothing, "bad: no such folder"),
    ("export bad", nothing, "bad: neither a folder nor an arm"),
    ("compare bad scratch", nothing, "bad: neither a recorded arm nor a run"),
    ("train bad", nothing, "arm bad; allowed: scratch, staged"),
    ("reproduce bad", nothing, "row bad: no arm bad in default; allowed: scratch, staged"),
    ("reproduce bad/scratch", nothing, "row bad/scratch: no part bad; allowed: default, "),
    ("reproduce scratch", nothing, "records/default: no record of scratch/0; `dvc repro evaluate@scratch`"),
    ("plan bad", nothing, "profile bad: there is no profiles/bad.yaml"),
    ("profile bad", nothing, "profile bad: there is no profiles/bad.yaml"),
    ("import-weights bad new", nothing, "bad: no such file"),
    # an empty folder, a folder of PDFs
    ("sample bad", empty, "bad: no weights in it; allowed: a folder with config.json and safetensors"),
    ("evaluate scratch bad", empty, "bad: no images; allowed: "),
    ("evaluate bad runs", pdfs, "runs: no images"),
    ("evaluate scratch bad", pdfs, "bad: no images (not images: 1 (one.pdf)); allowed: "),
    ("export bad", pdfs, "bad: no weights in it"),
    ("compare bad bad", empty, "bad: neither a recorded arm nor a run"),
    # damage
    ("sample bad", damaged_weights, "bad/diffusion_pytorch_model.safetensors: damaged: "),
    (
        "interpolate bad",
        damaged_weights,
        "bad/diffusion_pytorch_model.safetensors: damaged: it is not what was written",
    ),
    ("evaluate bad", damaged_weights, "bad/diffusion_pytorch_model.safetensors: damaged: "),
    ("export bad", damaged_weights, "bad/diffusion_pytorch_model.safetensors: damaged: "),
    ("compare bad scratch", damaged_record, "record.json: not a valid record"),
    # where nothing can be written; root may write anywhere, so a file stands in the way
    ("sample scratch --out bad/new", a_file_in_the_way, "new: cannot write it: Not a directory"),
    ("interpolate scratch --out bad/new", a_file_in_the_way, "new: cannot write it: Not a directory"),
    ("export scratch --out bad/new", a_file_in_the_way, "new: cannot write it: Not a directory"),
    ("import-weights params.yaml bad", a_file_in_the_way, "bad: exists; allowed: a new folder"),
    ("sample scratch --out runs", nothing, "runs: exists; allowed: a new folder"),
    # settings that do not fit
    ("train scratch", unprepared, "data/prepared/dataset.json: no such file; the stage `prepare` writes it"),
    ("evaluate scratch", unprepared, "data/prepared/dataset.json: no such file; the stage `prepare` writes it"),
    ("sample scratch --class 1", nothing, "class 1: "),
    ("sample scratch --guidance 2", nothing, "sampling.guidance_scale=2: "),
    ("sample scratch --sampler euler", nothing, "sampling.sampler=euler with objective=ddpm; allowed: ddpm, ddim"),
    ("evaluate scratch --sampler euler", nothing, "ddpm, ddim, dpm_solver, unipc; --sampler takes another one"),
    ("export scratch --sampler euler", nothing, "allowed: ddpm, ddim, dpm_solver, unipc; --sampler takes another one"),
    ("sample scratch --sampler bad", nothing, "sampling: sampler='bad': "),
    ("sample scratch --recipe bad", nothing, "recipe=bad: there is no profiles/recipes/bad.yaml; allowed: "),
    ("interpolate scratch --sampler ddpm", nothing, "sampling.sampler=ddpm with eta=0 adds noise of its own"),
    ("evaluate scratch --count 2", nothing, "2 images to judge; allowed: at least 4, evaluation.nearest_k + 1"),
]


def contents(project: Path) -> set[Path]:
    """All files and folders, but for locks and caches."""
    return {path for path in project.rglob("*") if path.suffix not in (".lock", ".pyc") and path.name != "__pycache__"}


@pytest.mark.parametrize(("line", "spoil", "says"), CASES, ids=[f"{line}-{spoil.__name__}" for line, spoil, _ in CASES])
def test_bad_input_is_one_line_and_leaves_nothing(
    line: str,
    spoil: Callable[[Path], None],
    says: str,
    project: Path,
    run: Run,
    capfd: pytest.CaptureFixture[str],
) -> None:
    spoil(project)
    before = contents(project)
    assert run(*line.split()) == 2
    written = capfd.readouterr()
    said = [line for line in written.err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    assert len(said) == 1, said
    assert said[0].startswith("error: ")
    assert says in said[0]
    assert not written.out
    assert contents(project) == before


@pytest.mark.parametrize(
    "line",
    [
        *("train scratch", "sample scratch", "interpolate scratch", "evaluate scratch", "export scratch"),
        *("compare a b", "reproduce scratch", "doctor"),
    ],
)
def test_outside_of_a_project_a_command_is_one_line_and_leaves_nothing(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*line.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}: no project here")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_disk_that_may_not_be_written_is_one_line(
    project: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root may write anywhere, the system's refusal is played."""

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    for line in ("sample scratch", "interpolate scratch", "export scratch"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "mkdir", refuse)
            assert run(*line.split()) == 2
        assert "cannot write it: Permission denied\n" in capsys.readouterr().err
        assert not (project / "samples").exists()
        assert not (project / "exports").exists()
