"""The page in a browser: what its controls do, by mouse and by keyboard, on a screen, on a phone and on paper."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from maskdm.reporting.index import write_index
from tests.imports import PROJECT
from tests.reporting.test_index import make

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: `apt-get install chromium`")
PHONE = 380  # pixels


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("project")
    make(root, study=True)
    with pytest.MonkeyPatch.context() as context:
        context.chdir(root)
        return write_index().resolve().as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has none
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page of a made-up project, whose numbers the tests know."""
    with watched(browser, url) as opened:
        yield opened


@pytest.fixture(params=["made up", "published"])
def any_page(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """That page, and the one in `reports/`."""
    published = (PROJECT / "reports" / "index.html").resolve().as_uri()
    with watched(browser, published if request.param == "published" else url) as opened:
        yield opened


@contextmanager
def watched(browser: Browser, url: str) -> Iterator[Page]:
    """A page, wide; nothing may go wrong in it, and it may ask for nothing."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda asked: None if asked.url.startswith(("data:", url)) else wrong.append(asked.url))
    opened.goto(url)
    yield opened
    context.close()
    assert wrong == []


def path(page: Page, arm: str, measure: str = "heldout_loss") -> str:
    """The line of an arm as it is drawn."""
    return page.locator(f"#chart-{measure} [data-arm={arm}] .line").get_attribute("d") or ""


def first_column(page: Page) -> list[str]:
    return [text.split("\n")[0].strip() for text in page.locator("#results > .scroll tbody th").all_inner_texts()]


def test_the_axis_switches_between_compute_time_and_images(page: Page) -> None:
    chart = page.locator("#chart-heldout_loss")
    for name, label in (
        ("time", "training time (minutes)"),
        ("images", "images seen (k images)"),
        ("compute", "training compute (TFLOPs)"),
    ):
        page.locator("#curves-controls").get_by_text(name, exact=True).click()
        assert label in (chart.text_content() or "")
        assert name in (chart.get_attribute("aria-label") or "")
        assert name in (page.locator("#chart-distance").text_content() or "")


def test_an_arm_can_be_switched_off_and_on(page: Page) -> None:
    arm = page.locator("#curves-controls").get_by_label("crop3")
    assert path(page, "crop3")
    arm.uncheck()
    assert page.locator("#curves [data-arm=crop3]").count() == 0
    assert "crop3" not in page.locator("#cursor-values").inner_text()
    assert path(page, "block90")
    arm.check()
    assert path(page, "crop3")


def test_scales_are_logarithmic_or_linear_and_may_show_everything(page: Page) -> None:
    seen = {path(page, "block90")}
    for name in ("log, vertical", "log, horizontal", "zoom in on the end"):
        page.locator("#curves-controls").get_by_label(name).click()
        seen.add(path(page, "block90"))
    assert len(seen) == 4
    assert "NaN" not in "".join(seen)


def test_the_slider_reads_the_values_off_the_curves(page: Page) -> None:
    cursor, values = page.locator("#cursor"), page.locator("#cursor-values")
    last = values.inner_text()
    assert page.locator("#cursor-at").inner_text() == "36 TFLOPs"
    cursor.focus()
    page.keyboard.press("Home")
    assert set(values.locator("td").all_inner_texts()) == {"–"}
    page.keyboard.press("End")
    assert values.inner_text() == last
    page.locator("#chart-heldout_loss").hover()
    assert page.locator("#cursor-at").inner_text() != "36 TFLOPs"


def test_the_table_sorts_both_ways_and_what_has_no_value_stays_below(page: Page) -> None:
    assert first_column(page) == ["scratch", "patch90", "block90", "control", "crop3"]
    head = page.locator("#results > .scroll thead th").filter(has_text="loss against scratch").first
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert first_column(page) == ["block90", "patch90", "control", "scratch", "crop3"]
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert first_column(page) == ["crop3", "scratch", "control", "patch90", "block90"]
    page.get_by_role("button", name="compute to scratch's loss").first.click()
    assert first_column(page)[-1] == "crop3", "it never gets there"
    page.get_by_role("button", name="compute to scratch's loss").first.click()
    assert first_column(page)[-1] == "crop3"


def test_seed_and_compute_change_the_grid(page: Page) -> None:
    grid = page.locator("#grids [data-name=block90]")
    assert page.locator("#snapshot-at").inner_text() == "36 TFLOPs"
    alt = [grid.locator("img").get_attribute("alt")]
    distances = [grid.inner_text()]
    page.locator("#snapshot").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#snapshot-at").inner_text() == "21.6 TFLOPs"
    alt.append(grid.locator("img").get_attribute("alt"))
    distances.append(grid.inner_text())
    page.locator("#samples-controls").get_by_text("3", exact=True).click()
    alt.append(grid.locator("img").get_attribute("alt"))
    distances.append(grid.inner_text())
    assert alt == [
        f"Samples of block90, seed {seed}, at {budget} TFLOPs" for seed, budget in ((1, "36"), (1, "21.6"), (3, "21.6"))
    ]
    assert len(set(distances)) == 3
    page.locator("#samples-controls").get_by_label("block90").uncheck()
    assert grid.count() == 0


def test_the_grid_shows_the_samples_of_its_place(page: Page) -> None:
    """Each place has its own picture in the data; the page shows that one."""
    shown = page.locator("#grids [data-name=crop3] img")
    for index, share in enumerate(("0.2", "0.6", "1.0")):
        page.locator("#snapshot").fill(str(index))
        expected = page.evaluate(
            "share => JSON.parse(document.getElementById('data').textContent).samples.grids.crop3['1'][share].uri",
            share,
        )
        assert shown.get_attribute("src") == expected


def test_the_keyboard_reaches_every_control(any_page: Page) -> None:
    any_page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    wanted = any_page.evaluate(
        """() => {
          const kinds = "a[href], button, summary, input:not([type=radio]), input[type=radio]:checked, [tabindex='0']";
          const nodes = [...document.querySelectorAll(kinds)];
          nodes.forEach((node, index) => (node.dataset.place = String(index)));
          return nodes.length;
        }"""
    )
    reached, ring = set(), 0
    for _ in range(wanted + 5):
        any_page.keyboard.press("Tab")
        place, outline = any_page.evaluate(
            "() => [document.activeElement.dataset.place, getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.add(place)
        ring += outline != "none"
    assert reached >= {str(index) for index in range(wanted)}
    assert ring > wanted / 2, "what has the focus is seen"


def test_controls_work_by_keyboard(page: Page) -> None:
    page.locator("#curves-controls input[name=axis]:checked").focus()
    page.keyboard.press("ArrowRight")
    assert "training time" in (page.locator("#chart-heldout_loss").text_content() or "")
    page.locator("#curves-controls").get_by_label("crop3").focus()
    page.keyboard.press("Space")
    assert page.locator("#curves [data-arm=crop3]").count() == 0
    page.locator("#results > .scroll thead button").first.focus()
    page.keyboard.press("Enter")
    assert first_column(page) == ["block90", "control", "crop3", "patch90", "scratch"]


@pytest.mark.parametrize("width", [PHONE, 768, 1200])
def test_nothing_scrolls_sideways(any_page: Page, width: int) -> None:
    any_page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    any_page.set_viewport_size({"width": width, "height": 800})
    any_page.wait_for_function(f"document.querySelector('#chart-distance').viewBox.baseVal.width <= {width}")
    assert any_page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(any_page: Page, scheme: str) -> None:
    any_page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for selector in ("body", ".note", "nav a", "#chart-heldout_loss text"):
        assert contrast(any_page, selector) > 4.5, selector


def contrast(page: Page, selector: str) -> float:
    """Of a text and the page behind it, as WCAG 2 has it."""
    colours = page.evaluate(
        """selector => {
          const style = getComputedStyle(document.querySelector(selector)), behind = getComputedStyle(document.body);
          const colour = document.querySelector(selector).closest("svg") ? style.fill : style.color;
          return [colour, behind.backgroundColor].map(text => text.match(/[0-9.]+/g).slice(0, 3).map(Number));
        }""",
        selector,
    )

    def luminance(channels: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in channels)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


def test_on_paper_everything_is_open_and_light_and_no_control_is_left(any_page: Page, tmp_path: Path) -> None:
    any_page.emulate_media(media="print", color_scheme="dark")
    any_page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert any_page.locator("details:not([open])").count() == 0
    assert not any_page.locator("#curves-controls").is_visible()
    assert any_page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    any_page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 10_000


def test_names_from_outside_run_nothing(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    trials = tmp_path / "reports" / "search" / "trials.csv"
    hostile = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    trials.write_text(trials.read_text().replace("4x4 crop", hostile))
    opened = browser.new_page()
    opened.goto(write_index().resolve().as_uri())
    assert opened.locator("#chart-search circle").count() == 4
    assert opened.evaluate("window.hacked") is None
    opened.close()
