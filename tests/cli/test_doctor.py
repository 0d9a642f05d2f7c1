"""`doctor` finds what is broken, names the fix, and changes nothing."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def tear_rwlock(project: Path) -> None:
    (project / ".dvc" / "tmp").mkdir(exist_ok=True)
    (project / ".dvc" / "tmp" / "rwlock").write_text('{"data/prep')


def spoil(name: str, content: bytes = b"\0damaged") -> Callable[[Path], object]:
    return lambda project: next(iter(sorted(project.glob(name)))).write_bytes(content)


def prepare_others(project: Path) -> None:
    file = project / "data" / "prepared" / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": "cifar10"}))


def record(project: Path) -> None:
    (project / "records" / "default").mkdir(parents=True)
    (project / "records" / "default" / "scratch.jsonl").write_text('{"record": 1}\n')


# what is broken -> the check that finds it, its verdict, and a part of the fix
BROKEN: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "rwlock": (tear_rwlock, "DVC", "wrong", "make unlock"),
    "params": (spoil("params.yaml", b"seeds: [0"), "settings", "wrong", ""),
    "array": (spoil("data/prepared/images.npy"), "data", "wrong", "dvc repro -f prepare"),
    "other data": (prepare_others, "data", "hint", "dvc repro prepare"),
    "reference": (spoil("data/reference/*.npz"), "reference", "wrong", "dvc repro -f reference"),
    "record": (record, "records", "wrong", "restore it with git"),
    "store": (spoil("mlflow.db"), "MLflow", "wrong", "maskdm sync"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found_with_its_fix(
    name: str, project: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    damage, check, verdict, fix = BROKEN[name]
    damage(project)
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    status = run("doctor", "--json")
    findings = json.loads(capsys.readouterr().out)
    (found,) = [one for one in findings if one["check"] == check and one["verdict"] == verdict]
    assert fix in found["fix"]
    assert (status == 1) == any(one["verdict"] == "wrong" for one in findings)
    after = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    assert {path: time for path, time in after.items() if path.name != "mlflow.db.lock"} == {
        path: time for path, time in before.items() if path.name != "mlflow.db.lock"
    }


def test_a_healthy_project_has_nothing_wrong(
    project: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run("doctor") == 0
    said = capsys.readouterr().out
    assert "wrong" not in said
    assert "no torn lock file" in said


def test_versions_are_compared_with_the_constraints(
    project: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = version("numpy")
    (project / "constraints.txt").write_text(f"numpy=={installed}\ntqdm==0.0.1\nno-such-package==1.0\n")
    assert run("doctor", "--json") == 0, "another version is a hint"
    (found,) = [one for one in json.loads(capsys.readouterr().out) if one["check"] == "packages"]
    assert found["verdict"] == "hint"
    assert "(tested: 0.0.1)" in found["found"]
    assert "numpy" not in found["found"]
