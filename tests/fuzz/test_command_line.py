"""Hostile command lines: a status, and of what is refused one line on stderr and nothing written."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import typer

from maskdm import cli
from maskdm.cli.app import app
from tests.fuzz.harness import amounts, changed_bytes, everything, fuzz, randoms, require_line
from tests.imports import PROJECT
from tests.workspace import ENVIRONMENT, write_params

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SERVERS = {"ui", "search"}  # given nothing wrong they start one
NEEDED = {"sync"}  # given nothing wrong it takes seconds
VALUES = [
    *("scratch", "staged", "scratch/0", "smoke", "default", "default/scratch", "params.yaml", "profiles", "runs", "."),
    *(
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "1",
        "2",
        "1e9",
        "nan",
        "inf",
        "-inf",
        "9" * 30,
        "9" * 5000,
        "0x10",
        "1.5",
        "٣",
        "²",
    ),
    *("scratch/²", "scratch/٣", "scratch/" + "9" * 30, "scratch/" + "9" * 5000, "scratch/-1", "scratch/"),
    *(
        "..",
        "../private",
        "/private",
        "/dev/null",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        "loop",
        "pipe",
        "~x",
        "$X",
    ),
    *(
        "a\nb",
        "\x1b[31m",
        "a" * 300,
        "a/" * 2000,
        "é",
        "\udcff",
        "\u202e",
        "{0}",
        "%s",
        "`id`",
        "'",
        '"',
        "*",
        "--seed=1",
    ),
    *(
        "ddim",
        "gif",
        "none",
        "profiles/../../private",
        "../../../../../../../../etc/passwd",
        "https://example.org/a.zip",
    ),
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without data, in which only what is refused ends at once; beside it, what nobody may touch."""
    folder = tmp_path / "project"
    shutil.copytree(PROJECT / "profiles", folder / "profiles")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy2(PROJECT / name, folder / name)
    write_params(folder)
    (folder / "loop").symlink_to("loop")
    (tmp_path / "private").write_text("untouched")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("maskdm.engine.dry_run.BURST_SECONDS", 0.001)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def line_of(random: Random) -> list[str]:
    """A command with options and arguments of its own, and some that it has not."""
    name = random.choice([*COMMANDS, "none", "", "--help"])
    words, given = [name], False
    for parameter in COMMANDS[name].params if name in COMMANDS else ():
        flag = getattr(parameter, "is_flag", False)
        wanted = 1.0 if parameter.param_type_name == "argument" else 0.25
        if parameter.name in ("help", "install_completion", "show_completion") or random.random() > wanted:
            continue
        values = [random.choice(VALUES) for _ in range(0 if flag else max(1, parameter.nargs))]
        words += [random.choice(parameter.opts), *values] if parameter.param_type_name == "option" else values
    if random.random() < 0.15 or name in SERVERS | NEEDED:
        words.insert(random.randrange(1, len(words) + 1), random.choice(("--none", "-x", "--json=1", "--seed")))
        given = True
    if given is False and random.random() < 0.05:
        random.shuffle(words)
    if words[0] in SERVERS | NEEDED and not given:
        words.append("--none")
    return words


def run_here(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Status and stderr."""
    monkeypatch.setattr(sys, "argv", ["maskdm", *words])
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0), err.getvalue()
        out.flush()
    return 0, err.getvalue()


def require_answer(words: list[str], status: int, said: str) -> None:
    """Fail a status that says nothing, or an error that is not one line, beside bars and what was left out."""
    assert status in ((0, 1, 2) if "doctor" in words else (0, 2)), (status, said)  # 1: the doctor has found something
    if status == 2:
        lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip()]
        lines = [line for line in lines if "%|" not in line and not line.strip().startswith("left out: ")]
        assert len(lines) == 1, said
        assert lines[0].startswith("error: ")
        require_line(lines[0])


@amounts(700, few=30)
def test_command_lines(examples: int, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, settings = everything(project.parent), (project / "params.yaml").read_bytes()

    def check(random: Random) -> str:
        words = line_of(random)
        try:
            status, said = run_here(words, monkeypatch)
            require_answer(words, status, said)
            after = everything(project.parent)
            if status < 2:  # `profile smoke`, say
                after["project/params.yaml"] = before["project/params.yaml"]
            assert after == before, set(after) ^ set(before)
        except AssertionError as error:
            raise AssertionError(f"{words!r:.300}: {error}") from None
        finally:
            monkeypatch.chdir(project)
            (project / "params.yaml").write_bytes(settings)
        return f"status {status}"

    fuzz(examples, "command lines", randoms(), check)


@amounts(40, few=1)
def test_commands_of_a_shell(examples: int, project: Path) -> None:
    """The same in processes of their own, and with damaged settings."""
    settings = (project / "params.yaml").read_bytes()

    def check(random: Random) -> str:
        words = line_of(random)
        words = [word for word in words if "\0" not in word and len(word) < 5000]
        (project / "params.yaml").write_bytes(changed_bytes(settings, random) if random.random() < 0.3 else settings)
        before = everything(project.parent)
        code = "from maskdm.cli import main; main()"
        environment = ENVIRONMENT | {"PYTHONPATH": str(PROJECT)}
        command = [sys.executable.encode(), b"-c", code.encode(), *map(os.fsencode, words)]
        ended = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=120
        )
        require_answer(words, ended.returncode, ended.stderr.decode())
        after = everything(project.parent)
        if ended.returncode < 2:
            after["project/params.yaml"] = before["project/params.yaml"]
        assert after == before, (words, set(after) ^ set(before))
        return f"status {ended.returncode}"

    fuzz(examples, "commands in processes", randoms(), check)
