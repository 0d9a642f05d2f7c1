import sys
import webbrowser
from pathlib import Path

import pytest

from maskdm.runtime.browser import DISPLAYS, open_page
from maskdm.runtime.errors import MaskDMError


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the browser is asked for, on a machine without a display."""
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", asked.append)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    return asked


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "with space" / "index.html"
    path.parent.mkdir()
    path.touch()
    return path


def test_without_a_display_the_path_is_printed(
    opened: list[str], page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_page(page, "make it")
    assert capsys.readouterr().out == f"{page}\n"
    assert opened == []


@pytest.mark.parametrize("display", DISPLAYS)
def test_with_a_display_the_browser_opens_the_file(
    display: str, opened: list[str], page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(display, ":0")
    open_page(page, "make it")
    assert opened == [page.as_uri()]
    assert "with%20space" in opened[0]


def test_a_page_that_is_not_there_is_named_with_what_makes_it(opened: list[str], tmp_path: Path) -> None:
    with pytest.raises(MaskDMError, match=r"index\.html: no such file; `dvc repro` makes it"):
        open_page(tmp_path / "index.html", "`dvc repro` makes it")
    assert opened == []
