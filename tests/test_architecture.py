"""One direction of data: what may never import what (DESIGN)."""

import pytest

from tests.imports import PROJECT, closure, imported_names, project_imports

MODULES = sorted(p for folder in ("maskdm", "pipeline") for p in (PROJECT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    ("importer", "never"),
    [
        ("uvit", {"masking", "diffusion", "config"}),
        ("diffusion", {"masking", "training", "config"}),
        ("sampling", {"training"}),
        ("metrics", {"training"}),
        ("extractors", {"training"}),
        ("training", {"metrics", "extractors", "tracking", "records", "report", "figures"}),
        ("report", {"training", "tracking", "metrics"}),
        ("swiss_roll", {"training", "swiss_roll_training", "swiss_roll_figures"}),
        ("swiss_roll_training", {"figures", "swiss_roll_figures"}),
        ("swiss_roll_figures", {"training", "swiss_roll_training"}),
    ],
)
def test_a_module_does_not_know_what_comes_after_it(importer: str, never: set[str]) -> None:
    assert not {path.stem for path in project_imports(PROJECT / "maskdm" / f"{importer}.py")} & never


def test_the_library_knows_neither_the_pipeline_nor_dvc() -> None:
    for path in (PROJECT / "maskdm").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported_names(path)} & {"pipeline", "dvc"}, path


@pytest.mark.parametrize(("library", "importer"), [("mlflow", "tracking"), ("optuna", "search")])
def test_only_one_file_of_the_library_imports(library: str, importer: str) -> None:
    importers = {path for path in MODULES if any(name.split(".")[0] == library for name in imported_names(path))}
    assert importers == {PROJECT / "maskdm" / f"{importer}.py"}


def test_the_report_needs_no_torch() -> None:
    for path in closure(PROJECT / "pipeline" / "report.py", without=frozenset({"records"})):
        assert not any(name.split(".")[0] == "torch" for name in imported_names(path)), path


def test_nothing_imports_in_a_circle() -> None:
    done: set[str] = set()

    def visit(path: str, trail: tuple[str, ...]) -> None:
        assert path not in trail, " -> ".join((*trail, path))
        if path in done:
            return
        for imported in sorted(map(str, project_imports(PROJECT / path))):
            visit(imported, (*trail, path))
        done.add(path)

    for module in MODULES:
        visit(str(module), ())
