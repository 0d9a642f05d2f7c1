"""The user's browser, where there is one."""

import os
import sys
import webbrowser
from pathlib import Path

from maskdm.runtime.errors import MaskDMError

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # one of them is set where a browser can open on Linux


def open_page(path: Path, remedy: str) -> None:
    """Print where a page is, and open it in the browser if there is a display.

    Args:
        path: of an HTML file.
        remedy: what the user should do if there is no such file.

    Raises:
        MaskDMError: there is no such file.
    """
    if not path.is_file():
        raise MaskDMError(f"{path}: no such file; {remedy}")
    print(path.resolve())
    # Without a display Python would start a text browser in the terminal.
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in DISPLAYS):
        webbrowser.open(path.resolve().as_uri())
