"""Whether a command that the documentation shows could run: its program takes these arguments. Nothing is run."""

import contextlib
import importlib.util
import io
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import dropwhile
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from ruamel.yaml import YAML

from tests.imports import PROJECT, closure, module_path

KEYWORDS = {"do", "done", "else", "exec", "fi", "if", "then"}
# Programs that are not the project's: the shell parses the line, and no more can be said without them.
OTHERS = {
    *(
        "[",
        "cd",
        "createdb",
        "docker",
        "export",
        "for",
        "git",
        "head",
        "jq",
        "openssl",
        "printf",
        "scontrol",
        "set",
        "source",
    ),
}
ASSIGNMENT = re.compile(r"\w+=.*")


def commands(block: str) -> Iterator[list[str]]:
    """The commands of a block of shell, as words; comments, keywords and assignments are left out."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|()"):
                if words:
                    yield words
                words = []
            elif words or not (word in KEYWORDS or ASSIGNMENT.fullmatch(word)):
                words.append(word)


def check(words: list[str]) -> None:
    """Fail if the program does not take these arguments.

    Raises:
        AssertionError: so it is.
    """
    program, *arguments = words
    if program in OTHERS:
        return
    assert program in CHECKS, f"{program}: nobody checks its arguments"
    CHECKS[program](arguments)


def _maskdm(arguments: list[str]) -> None:
    command = next((word for word in arguments if not word.startswith("-")), "")
    text = _help_of_maskdm(command)
    for option in (word.partition("=")[0] for word in arguments if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), f"maskdm {command} has no {option}"


@cache
def _help_of_maskdm(command: str) -> str:
    """What `maskdm COMMAND --help` prints."""
    script = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]["maskdm"]
    given, sys.argv = sys.argv, ["maskdm", *([command] if command else []), "--help"]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            resolve_name(script)()
    except SystemExit as done:
        if done.code:
            raise AssertionError(f"maskdm {command}: {out.getvalue()}") from done
    finally:
        sys.argv = given
    return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())


def _dvc(arguments: list[str]) -> None:
    from dvc.cli import parse_args

    given = parse_args(arguments)  # its error names the argument
    for target in getattr(given, "targets", None) or []:
        assert "$" in target or target in _stages(), f"dvc {' '.join(arguments)}: there is no {target}"


@cache
def _stages() -> set[str]:
    """All that `dvc repro` can be asked for, from the root of the project."""
    found: set[str] = set()
    for folder, prefix in ((PROJECT, ""), (PROJECT / "study", "study/dvc.yaml:")):
        settings, pipeline = _yaml(folder / "params.yaml"), _yaml(folder / "dvc.yaml")
        for name, stage in pipeline["stages"].items():
            found.add(prefix + name)
            if "foreach" in stage:
                found |= {f"{prefix}{name}@{key}" for key in settings[stage["foreach"][2:-1]]}
    return found


def _yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe").load(path)
    return content


def _make(arguments: list[str]) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    targets = {name.replace("$(VENV)", ".venv") for name in re.findall(r"^([\w$().]+):", makefile, re.M)}
    targets |= {".venv/ready"} if "READY := $(VENV)/ready" in makefile else set()
    for target in arguments:
        assert ASSIGNMENT.fullmatch(target) or target in targets, f"make: there is no {target}"


def _python(arguments: list[str]) -> None:
    flag, module, *rest = arguments
    assert flag == "-m", f"python {flag}: nobody checks it"
    _module(module)
    path = module_path(module) or PROJECT.joinpath(*module.split(".")).with_suffix(".py")
    sources = [file.read_text() for file in closure(path)]
    for option in (word for word in rest if word.startswith("-")):
        assert any(f'"{option}"' in source for source in sources), f"{module} has no {option}"


def _module(name: str) -> None:
    assert "$" in name or importlib.util.find_spec(name), f"there is no module {name}"


def _torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args([re.sub(r"=\$\w+$", "=1", word) for word in arguments])
    _module(parsed.training_script)


def _mlflow(arguments: list[str]) -> None:
    from mlflow.cli import cli

    cli.commands[arguments[0]].make_context(arguments[0], arguments[1:])


def _mkdocs(arguments: list[str]) -> None:
    from mkdocs.__main__ import cli

    cli.commands[arguments[0]].make_context(arguments[0], arguments[1:])


def _pytest(arguments: list[str]) -> None:
    assert all((PROJECT / place).exists() for place in arguments), "pytest: there is no such test"


def _pip(arguments: list[str]) -> None:
    from pip._internal.commands import create_command

    options, packages = create_command(arguments[0]).parse_args(arguments[1:])
    assert packages or options.editables
    assert all((PROJECT / name).is_file() for name in options.constraints)


def _srun(arguments: list[str]) -> None:
    """What it runs is checked; of its own options nothing is known."""
    check([*dropwhile(lambda word: word.startswith("-"), arguments)])


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "maskdm": _maskdm,
    "dvc": _dvc,
    "make": _make,
    "python": _python,
    "torchrun": _torchrun,
    "mlflow": _mlflow,
    "mkdocs": _mkdocs,
    "pytest": _pytest,
    "pip": _pip,
    "srun": _srun,
}
