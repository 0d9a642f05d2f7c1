"""The one page: what it holds, what it leaves out, and that nothing in it is taken for markup."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskdm.config.params import Params
from maskdm.reporting import page, web
from maskdm.reporting.analysed import Analysed
from maskdm.reporting.index import read_study, write_index
from maskdm.runtime.errors import MaskDMError
from maskdm.tracking.records import read_records
from tests.comparison import (
    DATASET,
    analysed,
    make_records,
    settings,
    write_parts,
    write_project,
    write_search,
    write_settings_of_parts,
)

LIMIT = 6_000_000
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


class Elements(HTMLParser):
    """Tags with their attributes, texts, and the identifiers."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)

    @property
    def ids(self) -> set[str]:
        return {str(attributes["id"]) for _, attributes in self.tags if "id" in attributes}

    @property
    def data(self) -> dict[str, Any]:
        """What the script draws."""
        return json.loads(max(self.text, key=lambda text: text.startswith('{"arms"')))


def make(root: Path, own: dict[str, Any] | None = None, study: bool = False) -> None:
    """A project with all that the page is made from."""
    own = own or settings()
    write_project(root, own, make_records(Params.model_validate(own)))
    write_search(root)
    if study:
        shared = {key: own[key] for key in ("seeds", "heldout", "arms", "baseline", "controls")}
        budget = {"train_flops": 9e12, "snapshots": [1.0]}
        part = shared | {"question": "And with less?", "paper": "nothing.", "budget": budget}
        write_settings_of_parts(root, {"small": part})
        write_parts(root, own, {"small": part})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One budget."""
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a project with two budgets, made twice."""
    root = tmp_path_factory.mktemp("project")
    make(root, study=True)
    with pytest.MonkeyPatch.context() as context:
        context.chdir(root)
        first = write_index().read_text(encoding="utf-8")
        assert write_index().read_text(encoding="utf-8") == first, "the same bytes again"
    assert [path.name for path in (root / "reports").iterdir() if path.is_file()] == ["index.html"]
    return first


@pytest.fixture(scope="module")
def found() -> Analysed:
    return analysed(Params.model_validate(settings()))


def test_the_page_says_what_the_report_says(html: str, found: Analysed) -> None:
    text = " ".join("".join(Elements(html).text).replace("\N{NO-BREAK SPACE}", " ").split())
    standing = page.standing(found.arms, "scratch", found.metric).splitlines()
    for said in (page.headline(found.params, found.arms, "squares"), *standing):
        assert said.removeprefix("- ").replace("`", "") in text
    for column in page.result_columns(found.params, found.arms, found.metric)[1:]:
        assert all(cell in text for cell in column.cells)


def test_the_page_is_one_small_file_that_asks_for_nothing(html: str) -> None:
    assert len(html.encode()) < LIMIT
    for tag, attributes in Elements(html).tags:
        for name in ("src", "href"):
            assert re.match(r"data:|#", attributes.get(name) or "#"), f"{tag} asks for {attributes[name]}"
    assert "@import" not in html
    assert "url(http" not in html


def test_every_section_is_there_and_every_number_has_its_source(html: str) -> None:
    elements = Elements(html)
    sections = {"results", "curves", "budgets", "masks", "samples", "search", "method", "provenance"}
    assert sections <= elements.ids
    text = " ".join(elements.text)
    files = {f"records/default/{arm}.jsonl" for arm in settings()["arms"]}
    files |= {"records/step_time.json", "records/reference.json", "records/study/small.jsonl"}
    assert all(name in text for name in files)
    commands = ("dvc repro evaluate@crop3", "dvc repro step_time", "python -m pipeline.study small")
    assert all(command in text for command in commands)
    assert DATASET["sha256"] in text
    assert "extractor effnet_lite0 at 96 px" in text


def test_an_arm_looks_the_same_over_the_budgets_as_in_the_curves(html: str) -> None:
    data = Elements(html).data
    arms = {arm["name"]: (arm["color"], arm["dashed"]) for arm in data["arms"]}
    followed = {own["name"]: (own["color"], own["dashed"]) for own in data["budgets"]["series"]}
    assert len(followed) > 1
    assert followed.items() <= arms.items()


def test_without_several_budgets_there_is_no_section_of_them(project: Path) -> None:
    elements = Elements(write_index().read_text())
    assert not elements.ids & {"budgets", "budgets-head", "chart-budgets"}
    assert elements.data["budgets"] is None
    assert "#budgets" not in {attributes.get("href") for _, attributes in elements.tags}


def test_a_study_of_other_data_or_settings_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a clone with own images: the study's masks may not even fit their tokens."""
    make(tmp_path, study=True)
    monkeypatch.chdir(tmp_path)
    study, data = read_records(tmp_path, ("study",)), {"sha256": DATASET["sha256"]}
    params = Params.model_validate(settings())
    assert [part.name for part in read_study(params, data, study)] == ["small"]
    assert read_study(params, {"sha256": "cd" * 32}, study) == []
    told = [(replace(record, params=record.params | {"model.patch_size": 8}), machine) for record, machine in study]
    assert read_study(params, data, told) == []
    assert read_study(params, data, []) == []


def test_samples_that_an_earlier_version_did_not_keep_are_left_out(project: Path) -> None:
    for path in project.glob("runs/evaluate/*/*/samples-*.npy"):
        path.unlink()
    elements = Elements(write_index().read_text())
    assert [step["share"] for step in elements.data["samples"]["steps"]] == [1.0]
    assert "snapshot" not in elements.ids, "no slider with one place"


def test_the_curves_are_those_of_the_analysis(html: str, found: Analysed) -> None:
    data = Elements(html).data
    line = data["curves"]["lines"]["block90"]["heldout_loss"]
    assert line.keys() == {"train_flops", "train_seconds", "images_seen"}
    assert line["train_flops"]["x"][-1] == 36
    assert line["images_seen"]["x"][-1] == 100
    row = found.arms.set_index("arm").loc["block90"]
    for axis in line.values():
        ends = [axis[key][-1] for key in ("mean", "low", "high")]
        assert ends == pytest.approx([row[f"heldout_loss{end}"] for end in ("", "_low", "_high")], rel=2e-3)
    assert [step["label"] for step in data["samples"]["steps"]] == ["7.2 TFLOPs", "21.6 TFLOPs", "36 TFLOPs"]
    assert data["samples"]["grids"]["crop3"]["2"]["0.6"]["uri"].startswith("data:image/webp;base64,")


def test_one_seed_and_a_baseline_alone_have_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = settings() | {"seeds": [1], "controls": {}}
    own["arms"] = {"scratch": own["arms"]["scratch"]}
    make(tmp_path, own)
    monkeypatch.chdir(tmp_path)
    html = write_index().read_text()
    assert "there is no arm to compare with" in html
    assert not re.search(r"\b(nan|NaN|inf)\b", re.sub(r"base64,[^\"]*", "", html))
    assert Elements(html).data["curves"]["lines"]["scratch"]["heldout_loss"]["train_flops"]["low"][0] is None


def test_names_from_settings_and_data_are_text(project: Path) -> None:
    prepared = project / "data" / "prepared" / "dataset.json"
    prepared.write_text(json.dumps(DATASET | {"name": HOSTILE, "source": HOSTILE}))
    trials = project / "reports" / "search" / "trials.csv"
    trials.write_text(trials.read_text().replace("4x4 crop", HOSTILE))
    html = write_index().read_text()
    elements = Elements(html)
    assert elements.count("script") == 2, "the data and the page's own"
    assert not any("onerror" in attributes for _, attributes in elements.tags)
    assert HOSTILE not in html
    assert any(point["masks"] == HOSTILE for point in elements.data["search"]["points"])


def test_markdown_takes_no_tags() -> None:
    assert web.markdown("a **b** <i>c</i>") == "<p>a <strong>b</strong> &lt;i&gt;c&lt;/i&gt;</p>\n"
    assert web.inline("`<b>`") == "<code>&lt;b&gt;</code>"
    assert "href" not in web.markdown("[x](javascript:alert(1))")


def test_a_missing_file_is_named_and_no_page_is_left(project: Path) -> None:
    name = "runs/evaluate/patch90/3/samples.npy"
    (project / name).unlink()
    with pytest.raises(MaskDMError, match=f"^{re.escape(name)}: no such file; "):
        write_index()
    (project / "reports" / "search" / "trials.csv").unlink()
    with pytest.raises(MaskDMError, match=r"search/trials.csv: no such file; the stage search_report writes it"):
        write_index()
    assert not (project / "reports" / "index.html").exists()


def test_places_of_changes_lie_on_one_axis(found: Analysed) -> None:
    changes = web.changes(found)
    assert changes["arms"].keys() == {"patch90", "block90", "control", "crop3"}
    for own in changes["arms"].values():
        assert 0 <= own["low"] < own["mean"] < own["high"] <= 100
        assert np.mean(own["seeds"]) == pytest.approx(own["mean"], abs=0.01)
    assert changes["arms"]["block90"]["high"] < changes["zero"] < changes["arms"]["crop3"]["low"]
