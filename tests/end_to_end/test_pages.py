"""The pages in a real browser: nothing goes wrong in it, and threshold, pictures and themes do what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.phantom.chest import Chest
from scripts.report import HtmlReport, RunIndex
from tests.browser import ARROW_LEFT, ARROW_RIGHT, CHROMEDRIVER, CHROMIUM, HOME, MISSING, Browser, chromium
from tests.results import searched_chest

pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason=MISSING)

VISIBLE = "return [...document.querySelectorAll(arguments[0])].filter(e => e.getClientRects().length > 0).length"
TEXT = "return document.querySelector(arguments[0]).textContent"
# Which picture is shown by the style and by the drawing, and where it lies.
SHOWN = """
  return [getComputedStyle(document.querySelector('.stack')).getPropertyValue('--shown'),
    [...document.querySelectorAll('.stack [data-picture]')].findIndex(g => !g.hasAttribute('hidden')),
    document.querySelector('.scroller').getAttribute('aria-valuetext')]"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as window:
        yield window


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_chest: Chest) -> Path:
    """``report.html`` of two nodules and two weaker candidates, ``none.html`` without findings, ``index.html``."""
    folder = tmp_path_factory.mktemp("pages")
    result = searched_chest(small_chest)
    HtmlReport()(result, folder)
    nothing = dataclasses.replace(result, nodules=(), candidates=(), mask=0 * result.mask)
    (folder / "none.html").write_text(HtmlReport().render(nothing), encoding="utf-8")
    index = RunIndex(folder)
    index.add(result, folder)
    index.add_failure("broken", "expected a scan, got <script>window.wrong = 1</script>")
    index.write(seconds=65.0)
    return folder


@pytest.fixture(autouse=True)
def quiet(browser: Browser) -> Iterator[None]:
    """Nothing goes wrong in the browser."""
    yield
    assert browser.console() == []


@pytest.fixture
def report(browser: Browser, folder: Path) -> Browser:
    browser.size(1280, 900)
    browser.prefer("light")
    browser.open(folder / "report.html")
    return browser


def _findings(report: Browser) -> list[int]:
    """Findings in the table, in the drawing of the body, and as close-ups."""
    return [report.run(VISIBLE, selector) for selector in ("#table tbody tr", "a.mark circle", "article")]


def test_a_report_opens_at_its_operating_threshold_which_hides_and_shows(report: Browser) -> None:
    assert _findings(report) == [2] * 3
    assert report.run(TEXT, "#count") == "2 of 4 findings shown, at the operating threshold."
    report.press("#threshold", ARROW_LEFT * 11)  # 0.39
    assert _findings(report) == [3] * 3
    below = "3 of 4 findings shown; 1 below the operating threshold of 0.5 and not outlined."
    assert report.run(TEXT, "#count") == below
    report.press("#threshold", ARROW_RIGHT * 51)  # 0.90
    assert report.run(TEXT, "#threshold-shown") == "0.90"
    assert report.run(VISIBLE, "#table tbody tr") == 1
    report.press("#threshold", ARROW_RIGHT * 9)  # 0.99, above the best of them
    assert report.run(VISIBLE, "#table") == 0
    assert "0.99 or more. This does not mean that there is no nodule." in report.run(TEXT, "#none-shown")
    report.click("#reset")
    assert report.run(VISIBLE, "#table tbody tr") == 2


def test_pictures_are_scrolled_by_keyboard(report: Browser) -> None:
    assert report.run(SHOWN) == ["10", 10, "centre"]
    report.press(".scroller", ARROW_RIGHT * 3)
    assert report.run(SHOWN) == ["13", 13, "3 mm towards feet"]
    report.press(".scroller", HOME)
    assert report.run(SHOWN) == ["0", 0, "10 mm towards head"]


def test_another_picture_is_another_image(report: Browser) -> None:
    report.run("document.body.classList.add('no-outlines')")
    report.press(".scroller", ARROW_RIGHT + ARROW_LEFT)
    report.seen(".stack .picture")  # brings it into view, where it stays
    before = report.seen(".stack .picture")
    assert report.seen(".stack .picture") == before
    report.press(".scroller", ARROW_RIGHT * 6)
    assert report.seen(".stack .picture") != before
    report.press(".scroller", ARROW_LEFT * 6)
    assert report.seen(".stack .picture") == before


def test_a_mark_leads_to_its_close_up(report: Browser) -> None:
    report.run("document.querySelector('a.mark[data-finding=\"2\"]').focus()")
    report.run("document.activeElement.dispatchEvent(new MouseEvent('click', { bubbles: true, cancelable: true }))")
    assert report.run("return location.hash") == "#finding-2"
    assert report.run("return document.querySelector(':target').tagName") == "ARTICLE"


def _paper(report: Browser, scheme: str, media: str = "screen") -> str:
    """The colour of the page where the system prefers a scheme."""
    report.prefer(scheme, media=media)
    return str(report.run("return getComputedStyle(document.body).backgroundColor"))


def test_the_theme_follows_the_system_and_the_button(report: Browser) -> None:
    light, dark = _paper(report, "light"), _paper(report, "dark")
    assert dark != light
    report.click(".theme")
    assert (_paper(report, "light"), _paper(report, "dark")) == (light, light)
    report.click(".theme")
    assert _paper(report, "dark", media="print") == "rgb(255, 255, 255)"
    assert (_paper(report, "light"), _paper(report, "dark")) == (dark, dark)
    report.click(".theme")
    assert (_paper(report, "light"), _paper(report, "dark")) == (light, dark)


@pytest.mark.parametrize("page", ["report.html", "none.html", "index.html"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_page_is_wider_than_its_window(page: str, width: int, browser: Browser, folder: Path) -> None:
    browser.size(width, 844, mobile=width < 500)
    browser.open(folder / page)
    assert browser.run("return document.documentElement.scrollWidth") == width


def test_what_a_page_says_of_itself_is_in_view(report: Browser) -> None:
    report.run("window.scrollTo(0, document.body.scrollHeight)")
    assert report.run("return document.querySelector('.bar').getBoundingClientRect().top") == 0
    assert "Not for diagnosis." in report.run(TEXT, ".bar")


def test_everything_that_takes_input_has_a_name(report: Browser) -> None:
    nameless = """
    return [...document.querySelectorAll("input, button, a, img")].filter(e =>
      !(e.labels && e.labels.length) && !e.getAttribute("aria-label") && !e.alt && !e.textContent.trim()).length"""
    assert report.run(nameless) == 0


def test_a_report_without_findings_has_nothing_to_move(browser: Browser, folder: Path) -> None:
    browser.open(folder / "none.html")
    assert browser.run(TEXT, "h1") == "No nodule found"
    assert browser.run(VISIBLE, "#none-shown") == 1
    assert browser.run(VISIBLE, "input") == 0


def test_markup_in_a_reason_does_nothing(browser: Browser, folder: Path) -> None:
    browser.open(folder / "index.html")
    assert browser.run("return window.wrong === undefined")
    assert "<script>window.wrong" in browser.run(TEXT, ".refused")
    browser.click(".list a")
    assert browser.run("return location.pathname").endswith("/report.html")


def test_no_other_script_can_run(report: Browser) -> None:
    report.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.own = 1'}))")
    assert report.run("return window.own === undefined")
    assert "Content Security Policy" in " ".join(report.console())
