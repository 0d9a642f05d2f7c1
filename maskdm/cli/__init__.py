"""The command `maskdm`: a file for each command or small family of them; `app` collects them."""

from maskdm.cli.app import main

__all__ = ["main"]
