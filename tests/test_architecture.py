"""One direction of data: what may never import what (DESIGN)."""

import pytest

from tests.imports import PROJECT, closure, imported_names, project_imports, room

MODULES = sorted(p for folder in ("maskdm", "pipeline") for p in (PROJECT / folder).rglob("*.py"))


# What each room may import. In this order: settings, data, tokens and network, method, objective, training, evaluation,
# records, what runs them, what reports them.
BELOW: dict[str, set[str]] = {
    "runtime": set(),
    "config": {"runtime"},
    "datasets": {"config", "runtime"},
    "networks": set(),
    "methods": {"networks", "config"},
    "training": {"datasets", "networks", "methods", "config", "runtime"},
    "evaluation": {"networks", "config", "runtime"},
    "tracking": {"runtime"},
    "search.py": {"config", "runtime"},
    "numerics.py": set(),
    "engine": {
        *("training", "evaluation", "tracking", "search.py", "numerics.py"),
        *("datasets", "networks", "methods", "config", "runtime"),
    },
    "reporting": {"tracking", "datasets", "config", "runtime"},
    "swiss_roll": {"training", "evaluation", "reporting", "networks", "methods", "config", "runtime"},
    "__init__.py": {"runtime", "networks"},
    "cli": {"engine", "reporting", "tracking", "config", "runtime"},
}


def test_every_room_imports_only_what_comes_before_it() -> None:
    for path in (PROJECT / "maskdm").rglob("*.py"):
        own = room(path).removeprefix("maskdm/")
        imported = {room(file).removeprefix("maskdm/") for file in project_imports(path)} - {own}
        assert imported <= BELOW[own], f"{path.relative_to(PROJECT)} imports {imported - BELOW[own]}"


@pytest.mark.parametrize(
    ("importer", "never"),
    [
        ("training/objective", {"training/loop", "methods/masks"}),
        ("swiss_roll/data", {"swiss_roll/training", "swiss_roll/figures"}),
        ("swiss_roll/training", {"swiss_roll/figures"}),
        ("swiss_roll/figures", {"swiss_roll/training"}),
    ],
)
def test_a_module_does_not_know_what_comes_after_it(importer: str, never: set[str]) -> None:
    imported = project_imports(PROJECT / "maskdm" / f"{importer}.py")
    assert not imported & {PROJECT / "maskdm" / f"{name}.py" for name in never}


def test_the_library_knows_neither_the_pipeline_nor_dvc() -> None:
    for path in (PROJECT / "maskdm").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported_names(path)} & {"pipeline", "dvc"}, path


@pytest.mark.parametrize(
    ("library", "importers"),
    [
        ("mlflow", {"tracking/mlflow_store", "tracking/mlflow_models"}),
        ("optuna", {"search"}),
        ("optuna_dashboard", {"search"}),
    ],
)
def test_only_these_files_of_the_library_import(library: str, importers: set[str]) -> None:
    found = {path for path in MODULES if any(name.split(".")[0] == library for name in imported_names(path))}
    assert found == {PROJECT / "maskdm" / f"{importer}.py" for importer in importers}


def test_a_stage_is_a_short_script() -> None:
    for path in (PROJECT / "pipeline").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, f"{path.name}: what it does belongs into the library"


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
