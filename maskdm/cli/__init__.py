"""The command `maskdm`: a file for each command or small family of them; `app` collects them."""

from maskdm.runtime.errors import one_line_interrupts

one_line_interrupts()  # before the commands are loaded

from maskdm.cli.app import main  # noqa: E402

__all__ = ["main"]
