"""The command line as a whole: how it starts, completes, documents itself, and ends."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer._click.core import Context  # the class is not public; Typer's own `utils docs` uses it

from maskdm.cli.app import app
from tests.cli.conftest import Run
from tests.commands import commands
from tests.imports import PROJECT

COMMAND = [sys.executable, "-c", "from maskdm.cli import main; main()"]
HEAVY = {"torch", "mlflow", "diffusers", "optuna", "pandas", "scipy", "numpy"}


def shell(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in the project."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)} | variables
    return subprocess.run([*COMMAND, *arguments], cwd=PROJECT, env=environment, capture_output=True, text=True)


def test_help_waits_for_no_heavy_library() -> None:
    code = (
        "import sys; from maskdm.cli import main\n"
        "try: main()\n"
        f"finally: print('loaded:', *sorted({HEAVY!r} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    for arguments in (["--help"], ["sample", "--help"]):
        command = [sys.executable, "-c", code, *arguments]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert "Usage: maskdm" in said
        assert said.splitlines()[-1] == "loaded:"


def test_every_command_teaches_with_an_example() -> None:
    group = typer.main.get_command(app)
    context = Context(group, info_name="maskdm")
    for name in group.list_commands(context):  # type: ignore[attr-defined]
        command = group.get_command(context, name)  # type: ignore[attr-defined]
        assert f"```sh\nmaskdm {name}" in command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


def every_command() -> list[str]:
    group = typer.main.get_command(app)
    return group.list_commands(Context(group, info_name="maskdm"))  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("name", every_command())
def test_the_examples_of_a_help_parse(name: str) -> None:
    group = typer.main.get_command(app)
    command = group.get_command(Context(group, info_name="maskdm"), name)  # type: ignore[attr-defined]
    [block] = re.findall(r"```sh\n(.*?)```", command.help, re.S)
    examples = [words[1:] for words in commands(block) if words[0] == "maskdm"]
    assert name in {words[0] for words in examples}
    for own, *arguments in examples:
        other = group.get_command(Context(group, info_name="maskdm"), own)  # type: ignore[attr-defined]
        with other.make_context(own, list(arguments)):  # an unknown option, a missing argument or a wrong type raises
            pass


def test_a_plan_is_a_table_and_json(
    project: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskdm.engine.dry_run.BURST_SECONDS", 0.01)
    assert run("plan") == 0
    said = capsys.readouterr().out
    assert "finetune" in said
    assert "total" in said
    assert run("plan", "--json") == 0
    phases = json.loads(capsys.readouterr().out)["phases"]
    assert [phase["arm"] for phase in phases] == ["scratch", "staged", "staged", "staged"]


def test_the_committed_help_is_current() -> None:
    command = [sys.executable, "-m", "typer", "maskdm.cli.app", "utils", "docs", "--name", "maskdm"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    said = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True).stdout
    assert (PROJECT / "docs" / "cli.md").read_text(encoding="utf-8") == f"{said.rstrip()}\n", "run `make docs/cli.md`"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plna"], "error: No such command 'plna'. Did you mean 'plan'?; see `maskdm --help`\n"),
        (["plan", "--brif"], "error: No such option: --brif (Possible options: --brief); see `maskdm plan --help`\n"),
        (["profile"], "error: Missing argument 'name'; see `maskdm profile --help`\n"),
        (["sample", "crops", "--count", "0"], "error: Invalid value for '--count': "),
        (["sample", "crops", "--animation", "mp4"], "error: Invalid value for '--animation': "),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], says: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(says)
    assert said.count("\n") == 1


def test_the_shell_completes_commands_arms_and_profiles() -> None:
    def completed(line: str) -> set[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        return set(shell(_MASKDM_COMPLETE="complete_bash", **words).stdout.split())

    assert completed("maskdm sam") == {"sample"}
    assert completed("maskdm profile celeb") == {"celeba64", "celebahq256"}
    assert completed("maskdm sample scr") == {"scratch"}


def test_a_closed_pipe_is_one_line_and_a_status() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    ended = subprocess.run(
        [*COMMAND, "compare", "crops", "scratch"], cwd=PROJECT, env=environment, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert ended.returncode == 141
    assert ended.stderr.decode() == "error: the reader of the output has gone; not all was written\n"


def test_ctrl_c_in_a_training_saves_it_and_the_same_command_goes_on(project: Path, run: Run) -> None:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    training = [*COMMAND, "train", "scratch", "--seed", "9"]
    process = subprocess.Popen(training, cwd=project, env=environment, stderr=subprocess.PIPE)
    assert process.stderr is not None
    shown = b""
    while b"finetune" not in shown:  # the bar: it trains
        more = os.read(process.stderr.fileno(), 4096)
        assert more, shown
        shown += more
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].decode()
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("interrupted: saved at step")
    assert "Traceback" not in said
    assert not (project / "runs" / "train" / "scratch" / "9").exists()
    assert run("train", "scratch", "--seed", 9) == 0
    assert (project / "runs" / "train" / "scratch" / "9" / "weights" / "config.json").is_file()
