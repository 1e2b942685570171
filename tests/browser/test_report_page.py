"""The report in a real browser: nothing is fetched, nothing sticks out, and axe finds no fault."""

import os
from pathlib import Path

import pytest

from oodlib.config import CHECKOUT
from oodlib.report import write_report

pytestmark = pytest.mark.browser
AXE = Path(os.environ.get("AXE") or CHECKOUT / ".venv" / "browser" / "node_modules" / "axe-core" / "axe.min.js")
WINDOWS = {"phone": (390, 844), "small phone": (360, 740), "desktop": (1280, 900)}


@pytest.fixture(scope="module", params=["tiny"])
def report(request, tmp_path_factory):
    return write_report(CHECKOUT / "outputs" / request.param, tmp_path_factory.mktemp("report") / "page.html")


@pytest.fixture(scope="module")
def page_of(chromium):
    """Opens a file in a window of a size and a colour scheme: the page, its console's messages, and its requests."""

    def opened(path, window="desktop", scheme="light"):
        width, height = WINDOWS[window]
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page, messages, requests = context.new_page(), [], []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))

        def answer(route):
            requests.append(route.request.url)
            route.continue_() if route.request.url == path.as_uri() else route.abort()

        page.route("**/*", answer)
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")
        return page, messages, requests

    return opened


@pytest.mark.parametrize("window", WINDOWS)
def test_the_page_asks_for_nothing_and_keeps_within_the_window(report, page_of, window):
    page, messages, requests = page_of(report, window)
    assert messages == [] and requests == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    out = "[...document.querySelectorAll('img')].filter(i => !i.complete || !i.naturalWidth).length"
    assert page.evaluate(out) == 0 and page.locator("img").count() >= 9


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", ["phone", "desktop"])
def test_axe_finds_no_fault(report, page_of, window, scheme):
    assert AXE.exists(), "axe-core is missing: make test-browser installs it"
    page, *_ = page_of(report, window, scheme)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    violations = page.evaluate("axe.run()")["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == []


def test_figures_stand_on_white_in_the_dark(report, page_of):
    page, *_ = page_of(report, "desktop", "dark")
    shade = "e => getComputedStyle(e).backgroundColor"
    assert page.locator("body").evaluate(shade) == "rgb(20, 23, 26)"
    assert page.locator(".paper").first.evaluate(shade) == "rgb(255, 255, 255)"


def test_a_link_of_the_contents_leads_to_its_section(report, page_of):
    page, *_ = page_of(report)
    link = page.locator("nav .level-3 a").last
    link.click()
    heading = page.locator(link.get_attribute("href"))
    assert heading.inner_text() == link.inner_text() and 0 <= heading.bounding_box()["y"] < 900


def test_on_paper_nothing_is_cut_off_and_links_show_their_addresses(report, page_of):
    page, *_ = page_of(report, "desktop", "dark")
    page.set_viewport_size({"width": 680, "height": 1000})  # the width of A4 within margins
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.locator("figure").first.evaluate("e => getComputedStyle(e).breakInside") == "avoid"
    address = "e => getComputedStyle(e, '::after').content"
    assert "https://arxiv.org" in page.locator("header a").evaluate(address)
