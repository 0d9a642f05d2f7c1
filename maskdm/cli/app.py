"""The Typer app: all commands, and how an error of any of them ends: one line, and a status that is not 0."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from maskdm.cli import (
    comparing,
    doctor,
    evaluating,
    own_images,
    planning,
    sampling,
    searching,
    store,
    training,
    verifying,
    weights,
)
from maskdm.runtime.errors import MaskDMError, exit_with_one_line


class OneLine(TyperGroup):
    """Runs a command so that what stops it is one line; at Ctrl-C and a closed pipe Typer would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        with exit_with_one_line():
            return super().invoke(ctx)


app = typer.Typer(
    cls=OneLine,
    name="maskdm",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # a traceback is a fault of ours: it is shown as Python shows it
)

# In the order in which a newcomer needs them.
PLAN, RUN, WEIGHTS, LOOK = "Before training", "Training", "Weights and images", "Results and housekeeping"
app.command("init", rich_help_panel=PLAN)(own_images.init)
app.command("advise", rich_help_panel=PLAN)(own_images.advise)
app.command("plan", rich_help_panel=PLAN)(planning.plan)
app.command("profile", rich_help_panel=PLAN)(planning.profile)
app.command("train", rich_help_panel=RUN)(training.train)
app.command("reproduce", rich_help_panel=RUN)(comparing.reproduce)
app.command("verify", rich_help_panel=RUN)(verifying.verify)
app.command("search", rich_help_panel=RUN)(searching.search)
app.command("sample", rich_help_panel=WEIGHTS)(sampling.sample)
app.command("interpolate", rich_help_panel=WEIGHTS)(sampling.interpolate)
app.command("evaluate", rich_help_panel=WEIGHTS)(evaluating.evaluate)
app.command("export", rich_help_panel=WEIGHTS)(weights.export)
app.command("import-weights", rich_help_panel=WEIGHTS)(weights.import_weights)
app.command("open", rich_help_panel=LOOK)(store.open_index)
app.command("compare", rich_help_panel=LOOK)(comparing.compare)
app.command("doctor", rich_help_panel=LOOK)(doctor.doctor)
app.command("sync", rich_help_panel=LOOK)(store.sync)
app.command("ui", rich_help_panel=LOOK)(store.ui)


@app.callback()
def about() -> None:
    """Does seeing fewer tokens make a diffusion model cheaper to train, by how much, with which method?

    `dvc repro` answers for the images and the budget of `params.yaml`. These commands are for before and after: they
    work in any folder of the project. `maskdm COMMAND --help` has examples.

    ```sh
    maskdm init PATH         # settings for your own images
    maskdm plan              # what would be trained, and how long that takes here
    dvc repro                # train, judge, report
    maskdm open              # the page: the answer, curves, samples
    maskdm ui                # every run in MLflow's UI
    ```
    """


def main() -> None:
    """Run the command line of this process."""
    with exit_with_one_line():
        if sys.platform == "win32":
            raise MaskDMError("Windows: processes there start and stop otherwise; allowed: Linux, macOS, or WSL 2")
        try:
            status = _run()
        except SystemExit as ended:
            if ended.code == 1 and isinstance(ended.__context__, BrokenPipeError):  # rich, which prints help, ends so
                raise BrokenPipeError from None
            raise
    if status:
        raise SystemExit(status)


def _run() -> int:
    """Its status; what Typer says of a wrong command line, as one line.

    Raises:
        MaskDMError: the command line is not usable.
    """
    try:
        found = app(prog_name="maskdm", standalone_mode=False)
    except typer.TyperException as error:
        if not error.format_message():  # no command at all: the help is printed
            return error.exit_code
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "maskdm"
        raise MaskDMError(f"{error.format_message().rstrip('.')}; see `{path} --help`") from None
    return found if isinstance(found, int) else 0
