"""Which of the project's modules a module imports, read from the source."""

import ast
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def module_path(name: str) -> Path | None:
    """The file of a module of the project; None for any other module."""
    stem = PROJECT.joinpath(*name.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file() and name.split(".")[0] in ("maskdm", "pipeline"):
            return path
    return None


@cache
def imported_names(path: Path) -> frozenset[str]:
    """Dotted names that a file imports anywhere, those for type checking left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def project_imports(path: Path) -> set[Path]:
    """Files of the project that a file imports itself; packages' empty `__init__.py` left out."""
    found = {module_path(name) for name in imported_names(path)}
    return {file for file in found if file is not None and file.name != "__init__.py"}


def closure(path: Path, without: frozenset[str] = frozenset()) -> set[Path]:
    """The file and all files of the project that it imports, directly or not, not looking into `without`."""
    seen, pending = set(), [path]
    while pending:
        file = pending.pop()
        if file in seen or file.stem in without:
            continue
        seen.add(file)
        pending += project_imports(file)
    return seen


def room(path: Path) -> str:
    """Where a file lives: its folder in `maskdm/`, or the file itself where it stands alone."""
    parts = path.relative_to(PROJECT).parts
    return "/".join(parts[:2])
