"""The documentation's code runs."""

import re
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import maskdm.methods
from maskdm.config.params import Params
from maskdm.config.reading import validated
from tests.conftest import PARAMS
from tests.imports import PROJECT

DOCS = PROJECT / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The blocks of code in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def join_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Puts the page's method beside the others; gives its test."""
    method, test = blocks("adding-a-method.md", "python")
    (tmp_path / "join_late.py").write_text(method, encoding="utf-8")
    monkeypatch.setattr(maskdm.methods, "__path__", [*maskdm.methods.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "maskdm.methods.join_late", raising=False)
    return test


def test_the_method_that_the_page_adds_passes_the_test_that_the_page_gives(join_late: str) -> None:
    space: dict[str, object] = {}
    exec(compile(join_late, "adding-a-method.md", "exec"), space)
    tests = [function for name, function in space.items() if name.startswith("test_") and callable(function)]
    assert len(tests) == 2
    for test in tests:
        test()


@pytest.mark.usefixtures("join_late")
def test_the_comparison_of_the_page_can_be_read() -> None:
    [comparison] = blocks("adding-a-method.md", "yaml")
    model = PARAMS["model"] | {"depth": 5}
    settings = PARAMS | {"model": model} | YAML(typ="safe").load(comparison)
    params = validated(Params, settings, "adding-a-method.md")
    assert params.arms["late"][0].method is not None
