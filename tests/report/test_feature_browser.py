"""The feature browser as a person works in it, at the size of a published SAE, in the installed Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foretune.tasks.report.feature_page import feature_page
from tests.report.browser import CHROMIUM, chromium
from tests.report.feature_tables import many_features

pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")]

MANY = 16_384
LARGEST, FIRST_PAINT = 20_000_000, 1.0  # bytes, seconds


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("page") / "features.html"
    place.write_text(feature_page(many_features(MANY), "20261129-a-run"), encoding="utf-8")
    return place.as_uri()


def opened(browser: Any, address: str, faults: list[str], **context: Any) -> Any:
    tab = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | context).new_page()
    tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("request", lambda request: None if request.url.startswith("file:") else faults.append(request.url))
    tab.goto(address)
    tab.wait_for_selector("#feature-list[data-shown]")
    return tab


def titles(tab: Any) -> list[str]:
    return tab.locator(".entry b").all_inner_texts()


def test_sixteen_thousand_features_are_one_small_page_that_opens_at_once(browser, address):
    faults: list[str] = []
    # The best of three: other work of the machine is none of the page's.
    took = []
    for _ in range(3):
        tab = opened(browser, address, faults)
        paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
        ready = "performance.getEntriesByType('navigation')[0].domInteractive"
        took.append(tab.evaluate(f"Math.max({paint}, {ready})") / 1000)
    assert Path(address.removeprefix("file://")).stat().st_size < LARGEST
    assert min(took) < FIRST_PAINT
    assert tab.locator(".entry").count() < 60
    tab.evaluate("document.getElementById('feature-list').scrollTop = 5000 * 56")
    tab.wait_for_selector("#entry-5000")
    assert tab.locator(".entry").count() < 60 and faults == []


def test_search_filters_and_keys(browser, address):
    faults: list[str] = []
    tab = opened(browser, address, faults)
    tab.keyboard.press("/")
    tab.keyboard.type("topic 4001 ")
    assert titles(tab) == ["words about topic 4001 and some more of it"]
    tab.fill("[name=text]", "12")  # by number, beside all that hold the text
    assert "words about topic 4 and some more of it" in titles(tab)
    tab.fill("[name=text]", "tok42")  # a promoted token
    assert len(titles(tab)) > 10
    tab.fill("[name=text]", "")
    tab.select_option("[name=moved]", "moved")
    assert tab.inner_text("#count") == "409 of 16,384 features that fire"
    tab.check("[name=clear]")
    assert "unclear" not in titles(tab)
    tab.select_option("[name=order]", "feature")
    assert titles(tab)[0].endswith("topic 1 and some more of it")
    tab.focus("#feature-list")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    assert tab.inner_text("#one h2") == "<img src=x onerror=alert(1)></script><b>"  # text, not a picture
    assert tab.locator("#one .context").count() == 6 and tab.locator("#one img").count() == 0
    assert tab.get_attribute("#one .says a", "href") == "https://www.neuronpedia.org/gemma-2-2b/20-res/9"
    assert tab.url.endswith("#feature-9") and faults == []
    tab.emulate_media(media="print")
    assert tab.is_visible("#one h2") and not tab.is_visible("#feature-list")


def test_a_phone_in_the_dark_opens_a_feature_by_its_address_and_goes_back(browser, address):
    faults: list[str] = []
    phone = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark", "has_touch": True}
    tab = opened(browser, f"{address}#feature-30000", faults, **phone)
    assert tab.inner_text("#one h2").endswith("topic 10000 and some more of it")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 22)"
    tab.click("#one .context a >> nth=0", trial=True)
    tab.tap("#one .back")
    assert not tab.is_visible("#one") and tab.is_visible("#feature-list")
    tab.tap(".entry >> nth=8")
    assert tab.is_visible("#one h2") and faults == []
