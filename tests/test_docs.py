"""The documentation's code runs, its site builds, and what is made from the code is up to date.

A block of shell runs in a toy project if it is of `QUICK` commands alone. Above any other one stands
`<!-- slow: REASON -->` or `<!-- not run: REASON -->`, and its commands are parsed. `tests/test_docs_trained.py` runs
the slow ones.
"""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

import maskdm.methods
from docs.tools.reference import PAGES as REFERENCE
from docs.tools.reference import renewed
from maskdm.config.params import Params
from maskdm.config.reading import load_recipe, recipe_of, validated
from maskdm.config.recipe import Recipe
from maskdm.config.study import Study
from maskdm.engine.model import as_model
from maskdm.networks.uvit import UViT
from maskdm.tracking import mlflow_store
from maskdm.tracking.records import Record
from maskdm.training.checkpoint import save_snapshot
from tests.commands import check, commands
from tests.conftest import PARAMS, RECIPE
from tests.imports import PROJECT
from tests.workspace import ENVIRONMENT, make_workspace

DOCS = PROJECT / "docs"
BLOCK = re.compile(
    r"^(?:[ ]*<!-- (?P<when>slow|not run): (?P<reason>[^\n]+) -->\n)?"
    r"(?P<indent>[ ]*)```(?P<language>\S*)\n(?P<code>.*?)^(?P=indent)```$",
    re.M | re.S,
)
CHECKED = {"python", "sh", "yaml"}
OTHERS = {"math", "text", "console"}  # the site's build reads equations; the others are no code
HELP = DOCS / "cli.md"  # made from the help texts, which have no place for a mark
QUICK = {  # nothing else is run: it might train for hours
    *("maskdm export", "maskdm interpolate", "maskdm profile", "maskdm sample", "maskdm sync", "make unlock"),
}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    when: str | None  # "slow" or "not run"; None: at once

    def __str__(self) -> str:
        return f"{self.page.relative_to(PROJECT)}:{self.line}"


def blocks_of(page: Path, language: str = "") -> list[Block]:
    """The blocks of code in a page."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            page,
            text.count("\n", 0, block.start("code")) + 1,
            block["language"],
            textwrap.dedent(block["code"]),
            block["when"] or (_when_of_help(block["code"]) if page == HELP else None),
        )
        for block in BLOCK.finditer(text)
    ]
    assert len(found) * 2 == len(re.findall(r"^ *```", text, re.M)), f"{page}: a block of code is not closed"
    return [block for block in found if not language or block.language == language]


def _when_of_help(code: str) -> str:
    return "not run" if "maskdm init" in code else "slow"  # `tests/test_own_images.py` runs them: it trains for minutes


PAGES = sorted({*DOCS.rglob("*.md"), PROJECT / "README.md", PROJECT / "CONTRIBUTING.md"})
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
SLOW = [block for block in SHELL if block.when == "slow"]
METHOD_PAGE = DOCS / "adding-a-method.md"  # has tests of its own


def named(blocks: list[Block]) -> Any:
    return pytest.mark.parametrize("block", [pytest.param(block, id=str(block)) for block in blocks])


# --- blocks --------------------------------------------------------------------------------------------------


def test_every_block_of_code_is_of_a_language_that_is_checked() -> None:
    assert {block.language for block in BLOCKS} <= CHECKED | OTHERS
    assert {block.language for block in BLOCKS} >= CHECKED


@pytest.fixture(scope="module")
def toy_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the profile `smoke`, where nothing has been run but for the weights of one trial."""
    folder = tmp_path_factory.mktemp("docs") / "project"
    make_workspace(folder, "smoke")
    shutil.copy2(PROJECT / "Makefile", folder)
    save_weights(folder)
    return folder


def save_weights(project: Path) -> None:
    network = UViT(image_size=(8, 8), patch_size=2, in_channels=1, embed_dim=16, depth=3, num_heads=2)
    save_snapshot(project / "runs/finetune/crops/1/weights", network, load_recipe("tuned").objective)


@named([block for block in SHELL if block.when is None])
def test_a_block_of_shell_runs(block: Block, toy_project: Path) -> None:
    assert {" ".join(words[:2]) for words in commands(block.code)} <= QUICK, "say above it why it is not run at once"
    environment = ENVIRONMENT | {"PYTHONPATH": str(toy_project)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code], cwd=toy_project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@named([block for block in SHELL if block.when is not None])
def test_a_block_of_shell_that_is_not_run_at_once_can_be_parsed(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    subprocess.run(["bash", "-n", "-c", block.code], check=True)
    found = list(commands(block.code))
    assert found
    for command in found:
        check(command)


@pytest.mark.parametrize(
    "wrong",
    [
        "maskdm plan --breif",
        "maskdm trian",
        "dvc repro reprot",
        "dvc repro --forse",
        "make reproduce",
        "python -m pipeline.stdy masks",
        "python -m pipeline.study masks --wokers 1",
        "pip install -c constraint.txt -e .",
        "torchrun --nodes=2 -m pipeline.pretrain",
        "unknown-program",
    ],
)
def test_a_wrong_command_is_found(wrong: str) -> None:
    [words] = commands(wrong)
    with pytest.raises((Exception, SystemExit)):  # every program has its own
        check(words)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks_of(p, "python") and p != METHOD_PAGE], ids=lambda p: p.stem
)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles").symlink_to(PROJECT / "profiles")
    save_weights(tmp_path)
    monkeypatch.chdir(tmp_path)
    if "sqlite:///mlflow.db" in page.read_text(encoding="utf-8"):
        log_a_model(tmp_path, monkeypatch)
    space: dict[str, object] = {"__name__": page.stem}
    for block in blocks_of(page, "python"):
        exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), space)


def log_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Track the weights in `folder` as its stage does."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # which the page sets
    data = {"name": "fashion_mnist", "sha256": "ab" * 32, "train": 1, "heldout": 1, "shape": [1, 8, 8]}
    record = Record("default", "crops/1", "crops", "one", {"arm": "crops", "seed": 1}, data, {}, [])
    weights = folder / "runs/finetune/crops/1/weights"
    with mlflow_store.live_run(folder, record) as run:
        run.log_model(
            as_model(weights, Recipe.model_validate(RECIPE).objective, Params.model_validate(PARAMS).sampling)
        )


@named([block for block in BLOCKS if block.language == "yaml" and block.page != METHOD_PAGE])
def test_settings_of_a_page_can_be_read(block: Block) -> None:
    settings = YAML(typ="safe").load(block.code)
    if "sets" in settings:  # of the study
        validated(Study, {"parts": {}} | settings, str(block))
        return
    params = validated(Params, PARAMS | settings, str(block))
    recipe_of(params, PROJECT)


# --- the page that adds a method -------------------------------------------------------------------------------


@pytest.fixture
def join_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Puts the page's method beside the others; gives its test."""
    method, test = (block.code for block in blocks_of(METHOD_PAGE, "python"))
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
    [comparison] = blocks_of(METHOD_PAGE, "yaml")
    model = PARAMS["model"] | {"depth": 5}
    settings = PARAMS | {"model": model} | YAML(typ="safe").load(comparison.code)
    params = validated(Params, settings, "adding-a-method.md")
    assert params.arms["late"][0].method is not None


# --- numbers -------------------------------------------------------------------------------------------------


INTERVAL = re.compile(r"([+-]?[\d.]+) % \(([+-]?[\d.]+) to ([+-]?[\d.]+)")  # a mean and its 95 % interval
REPORTS = ("report", "study", "methods")


def rows_with_intervals(text: str) -> list[str]:
    return [line for line in text.splitlines() if line[:1] == "|" and INTERVAL.search(line)]


def reported_rows() -> list[str]:
    """The rows of the reports' tables, each with the compute of its section behind it."""
    found = []
    for name in REPORTS:
        for section in (PROJECT / "reports" / f"{name}.md").read_text(encoding="utf-8").split("\n## "):
            spent = re.search(r"^\d+ TFLOPs?(?= an arm)", section, re.M)
            found += [f"{row} {spent[0] if spent else ''}" for row in rows_with_intervals(section)]
    return found


@pytest.mark.parametrize("page", [PROJECT / "README.md", DOCS / "results.md"], ids=lambda page: page.stem)
def test_every_interval_of_the_tables_of_results_is_one_of_that_arm_in_a_report(page: Path) -> None:
    reported, shown = reported_rows(), rows_with_intervals(page.read_text(encoding="utf-8"))
    assert shown
    for row in shown:
        arms = set(re.findall(r"`([\w-]+)`", row))
        budget = re.search(r"\b\d+ TFLOP", row)
        found = [
            interval
            for other in reported
            if other.split("|")[1].split()[0] in arms and (budget is None or f" {budget[0]}" in other)
            for interval in INTERVAL.findall(other)
        ]
        assert set(INTERVAL.findall(row)) <= set(found), row


def test_what_the_page_on_advice_says_of_the_study_was_measured() -> None:
    [measured] = pd.read_csv(PROJECT / "reports" / "study" / "advice.csv").to_dict("records")
    text = (DOCS / "advise.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| .* \| (\+0\.\d\d) \|$", text, re.M)
    assert cells == [f"{measured[key]:+.2f}" for key in ("by_saving", "by_context", "of_halves")]
    assert f"a rank correlation of {cells[0]} over {measured['masks']} masks" in text
    assert f"Of {measured['pairs']} pairs" in text
    assert f"ends lower in {100 * measured['at_equal_ratio']:.0f} %" in text


# --- the site ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(REFERENCE.glob("*.md")), ids=lambda page: page.stem)
def test_tables_that_are_made_from_the_code_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert renewed(text) == text, "python -m docs.tools.reference makes them anew"


def test_the_tables_say_what_is_allowed_and_what_it_means() -> None:
    made = renewed("<!-- blocks of maskdm.config.params.Params -->\n<!-- end -->\n")
    assert "| `ratio` | number above 0 below 1 | an error |" in made
    assert "| `eta` | number from 0 to 1 | an error | DDIM's noise: 0 deterministic, 1 ancestral." in made
    assert "### `method: {name: route, ...}`" in made


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html") if "reports" not in path.parts}
    for path, html in pages.items():
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?(?:https?:)?//[^\s>]+", html)
        fetched += re.findall(
            r"<link[^>]*rel=[\"']?(?:stylesheet|preconnect|icon)[^>]*href=[\"']?(?:https?:)?//[^>]+", html
        )
        assert not fetched, f"{path.name}: {fetched}"
    assert "<math" in pages[tmp_path / "explanation" / "method.html"]
    assert (tmp_path / "reports" / "report.html").is_file()
