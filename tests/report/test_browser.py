"""The pages in a real browser, from file://, with the network watched."""

import shutil
from collections.abc import Iterator

import pytest

from medseqft_kit.report.page import write_comparison_report, write_report

FLAGS = ["--no-sandbox", "--disable-background-networking", "--no-first-run"]
WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
DRAWN = "document.querySelectorAll('.js-plotly-plot .subplot').length"


class Opened:
    """A page that has settled, and what happened on the way."""

    def __init__(self, browser, path):
        self.complaints, self.requests = [], []
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('.plotly-graph-div')].every(plot => plot.querySelector('.subplot'))"
        )

    def count(self, selector):
        return self.page.locator(selector).count()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian's package `chromium`); the pages are not opened in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


def test_the_run_page_draws_everything_without_complaint_network_or_overflow(browser, finished_run):
    path = write_report(finished_run)
    opened = Opened(browser, path)
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [path.as_uri()]
    assert opened.count(".js-plotly-plot") == 1 + 2 + 2  # pre-training; curves and scores of two stages
    assert opened.page.evaluate(DRAWN) == 1 + 2 * 4 + 2  # two phases × losses and validation
    assert opened.count(".pictures img") == 2 * 3 * 3  # stages × cases × pictures
    assert opened.page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    scroll, client = opened.page.evaluate(WIDTHS)
    assert scroll <= client
    anchors = opened.page.evaluate("[...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.hash))")
    assert anchors == [True] * 8
    assert "a<b>&c" in opened.page.locator(".case h4").all_inner_texts()[0] + "".join(
        opened.page.locator("h4").all_inner_texts()
    )


def test_the_comparison_page_draws_everything_and_its_links_lead_to_the_runs(browser, comparison_folder):
    path = write_comparison_report(comparison_folder)
    opened = Opened(browser, path)
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [path.as_uri()]
    # Gains and rivals (2 panels each), ranks, compute, orders, matrices (2 orders × 2 strategies), generality,
    # transfer, cases (2 tasks).
    assert opened.count(".js-plotly-plot") == 10
    assert opened.page.evaluate(DRAWN) == 4 + 3 + 4 + 2 + 2
    names = opened.page.locator(".js-plotly-plot text").filter(has_text="naive <b>sequential</b>")
    assert names.count() == 2 + 1 + 1 + 1 + 2 + 1 + 1  # forests, ranks, compute, orders, matrices, generality, boxes
    scroll, client = opened.page.evaluate(WIDTHS)
    assert scroll <= client
    opened.page.get_by_role("link", name="seed 0 · order 0").click()
    assert opened.page.inner_text("p") == "single"
