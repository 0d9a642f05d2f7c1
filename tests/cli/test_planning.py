import sys
from pathlib import Path

import pytest

from maskdm import cli
from tests.imports import PROJECT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two profiles and their recipe."""
    for name in ("dvc.yaml", "profiles/smoke.yaml", "profiles/default.yaml", "profiles/recipes/tuned.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((PROJECT / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["maskdm", *arguments])
    cli.main()


def test_a_profile_becomes_params(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("smoke", "default"):
        run(monkeypatch, "profile", name)
        assert (project / "params.yaml").read_bytes() == (project / "profiles" / f"{name}.yaml").read_bytes()


def test_edits_of_params_are_not_overwritten(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = (project / "profiles" / "smoke.yaml").read_text().replace("seed: 0", "seed: 1")
    (project / "params.yaml").write_text(edited)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "profile", "default")
    assert "has edits that no file in profiles/ holds" in capsys.readouterr().err
    assert (project / "params.yaml").read_text() == edited


def test_an_unknown_profile_is_one_line_with_the_known_ones(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "profile", "celeba")
    assert (
        capsys.readouterr().err == "error: profile celeba: there is no profiles/celeba.yaml; allowed: default, smoke\n"
    )


def test_the_plan_names_every_phase_and_trains_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("maskdm.engine.dry_run.BURST_SECONDS", 0.1)
    run(monkeypatch, "plan", "smoke")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    phases = [line[:2] for line in lines]
    assert phases.count(["staged", "pretrain"]) == phases.count(["control", "pretrain"]) == 2
    totals = [line for line in lines if line[1:2] == ["total"]]
    assert [line[0] for line in totals] == ["scratch", "patch75", "staged", "control"]
    assert all(float(line[3]) == pytest.approx(100, rel=0.005) and line[4] == "GFLOPs" for line in totals)
    assert {p.name for p in project.iterdir()} == {"dvc.yaml", "profiles"}


def test_a_plan_with_a_sampler_of_another_objective_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (project / "profiles" / "smoke.yaml").read_text().replace("sampler: unipc", "sampler: ddim")
    (project / "params.yaml").write_text(settings)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "plan")
    assert capsys.readouterr().err == (
        "error: sampling.sampler=ddim with objective=flow; allowed: euler, heun, dpm_solver, unipc\n"
    )


def test_a_command_works_from_a_folder_inside_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "profiles" / "recipes")
    run(monkeypatch, "profile", "smoke")
    assert (project / "params.yaml").is_file()


@pytest.mark.parametrize("arguments", [("sync",), ("ui",), ("plan",), ("profile", "smoke"), ("search",)])
def test_outside_of_a_project_a_command_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *arguments)
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no project here")
    assert not list(tmp_path.iterdir())


def test_the_search_is_run_with_as_many_workers_as_asked_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, command: commands.append(command))
    run(monkeypatch, "search", "--workers", "3")
    run(monkeypatch, "search", "--large", "--join")
    assert [command[2:] for command in commands] == [
        ["pipeline.search", "--workers=3"],
        ["pipeline.search", "--large", "--join"],
    ]
