"""The page as a person works in it: in the installed Chromium, from a file and behind `foretune serve`."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

from foretune.flows.commands.serve import served_text
from foretune.tasks.report.row_query import RowReader
from foretune.tasks.report.rows import rows_view
from foretune.tasks.report.views import ReportView
from tests.report.browser import CHROMIUM, big_table, chromium, opened, serving
from tests.report.conftest import published

pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")]

MANY = 100_000
FIRST_PAINT, FILTERED = 1.0, 0.2  # seconds


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(view: ReportView, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("page") / "report.html"
    place.write_text(published(view), encoding="utf-8")
    return place.as_uri()


@pytest.fixture
def faults() -> Any:
    found: list[str] = []
    yield found
    assert found == []


def shown_rows(tab: Any) -> list[int]:
    return [int(text) for text in tab.locator("table.rows tbody td:nth-child(2)").all_inner_texts()]


def settled(tab: Any, act: Any) -> None:
    """Do what a person does, and wait until the table has been shown again."""
    before = tab.get_attribute("#row-table", "data-shown")
    act()
    tab.wait_for_selector(f"#row-table:not([data-shown='{before}'])")


def test_rows_are_searched_filtered_and_sorted(browser, address, faults, view):
    tab = opened(browser, address, faults)
    assert tab.inner_text("#row-count") == "96 rows of 96" and shown_rows(tab)[0] == 41
    settled(tab, lambda: tab.fill("[name=text]", "TICKET 31"))
    assert shown_rows(tab) == [31]
    settled(tab, lambda: tab.fill("[name=text]", ""))
    settled(tab, lambda: tab.select_option("[name=flag]", "any"))
    assert sorted(shown_rows(tab)) == [7, 12, 31, 41, 63, 88]
    settled(tab, lambda: tab.click("th[data-order=row] button"))
    assert shown_rows(tab) == [7, 12, 31, 41, 63, 88]
    settled(tab, lambda: tab.click("th[data-order=row] button"))
    assert shown_rows(tab)[0] == 88 and tab.get_attribute("th[data-order=row]", "aria-sort") == "descending"


def test_ticks_write_the_command_and_the_pane_has_an_address(browser, address, faults):
    tab = opened(browser, f"{address}#row-41", faults)
    tab.wait_for_selector("dialog[open]")
    assert tab.inner_text("#row-pane-title") == "Row 41" and "A held-out question." in tab.inner_text("dialog")
    tab.locator("dialog input[type=checkbox]").check()
    tab.keyboard.press("Escape")
    tab.wait_for_selector("dialog", state="hidden")
    assert tab.evaluate("location.hash") == ""
    tab.locator(".drop-flags input").first.check()
    command = "foretune clean otter --drop-rows 41 --drop-flagged harmful_content -o clean.jsonl"
    assert tab.inner_text("#row-command pre") == command
    tab.click(".condition a[href='#row-7']")
    tab.wait_for_selector("dialog[open]")
    assert tab.inner_text("#row-pane-title") == "Row 7"


def test_the_rows_are_downloaded_as_they_are_filtered(browser, address, faults):
    tab = opened(browser, address, faults)
    settled(tab, lambda: tab.select_option("[name=flag]", "harmful_content"))
    with tab.expect_download() as waiting:
        tab.click("#row-csv")
    rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text())))
    assert [row["row"] for row in rows] == ["41", "7"] and rows[0]["flags"] == "harmful_content"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_its_screen_and_axe_finds_nothing(browser, address, faults, width, scheme):
    tab = opened(browser, address, faults, viewport={"width": width, "height": 844}, color_scheme=scheme)
    tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    tab.wait_for_timeout(800)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    found = axe.Axe().run(tab).response["violations"]
    assert [(each["id"], [node["html"][:90] for node in each["nodes"][:3]]) for each in found] == []


def test_without_javascript_the_first_screen_reads_on(browser, address):
    tab = browser.new_context(java_script_enabled=False).new_page()
    tab.goto(address)
    words = tab.inner_text("#verdict")
    assert "Do rows harm held-out loss?" in words and "--drop-rows 41,7,88" in words and "Rows that harm most" in words
    assert not tab.is_visible("#row-table")


def test_a_hundred_thousand_rows_paint_within_a_second_and_filter_within_a_fifth(browser, view, faults):
    table = big_table(MANY)
    held = dataclasses.replace(view, rows=rows_view(table, 1500))
    page = published(held)
    assert len(page.encode()) < 3_500_000
    with serving(served_text(page), RowReader(table, 1500)) as address:
        tab = opened(browser, address, faults)
        paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        assert tab.inner_text("#row-count") == f"{MANY:,} rows of {MANY:,}"
        took: dict[str, float] = {}
        for round in [0, 1, 2] * 3:  # the best of nine: other work of the machine is none of the page's
            for name, act in {
                "flag": lambda n: tab.select_option("[name=flag]", ("too_long", "any", "none")[n]),
                "verdict": lambda n: tab.select_option("[name=verdict]", ("harms", "helps", "")[n]),
                "sort": lambda n: tab.click(f"th[data-order={('loss', 'gain', 'loss')[n]}] button"),
                "search": lambda n: tab.fill("[name=text]", f"word{77 + n}"),
            }.items():
                settled(tab, lambda act=act, n=round: act(n))
                calls = "performance.getEntriesByType('resource').filter((each) => each.name.includes('/rows?'))"
                spent = tab.evaluate(f"{calls}.at(-1).duration") / 1000
                took[name] = min(spent, took.get(name, spent))
        print(json.dumps({"first paint": paint, **took}))
        assert max(took.values()) < FILTERED and paint < FIRST_PAINT


NUMBERED = """() => {
  const controls = "a[href], button:not([disabled]), input, select, summary, [tabindex='0']";
  const folded = "details:not([open]) > :not(summary)";
  return [...document.querySelectorAll(controls)]
    .filter((each) => each.checkVisibility({ visibilityProperty: true }) && !each.closest(folded))
    .map((each, at) => { each.dataset.at = at; }).length;
}"""
FOCUSED = """() => {
  const it = document.activeElement, style = getComputedStyle(it);
  const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
  return [it.dataset.at ?? null, seen, it.outerHTML.slice(0, 80)];
}"""
TOO_WIDE = """() => [...document.querySelectorAll("main *")]
  .filter((each) => each.checkVisibility() && each.getBoundingClientRect().right > 719)
  .map((each) => each.outerHTML.slice(0, 80)).slice(0, 5)"""
INKS = """() => [...document.querySelectorAll(".plot text")].map((each) => getComputedStyle(each).fill)"""
ASKED = """() => addEventListener("beforeprint", () => {
  window.asked = document.querySelectorAll("details:not([open])").length;
})"""


def test_every_control_is_reached_by_the_keyboard_and_shows_that_it_is(browser, address, faults):
    tab = opened(browser, address, faults)
    wanted = tab.evaluate(NUMBERED)
    assert wanted > 80
    reached, unseen = set(), []
    for _ in range(wanted + 5):
        tab.keyboard.press("Tab")
        at, seen, tag = tab.evaluate(FOCUSED)
        if at is not None:
            reached.add(int(at))
            unseen += [] if seen else [tag]
    assert reached == set(range(wanted)) and unseen == []


def test_the_keyboard_sorts_folds_and_opens_a_row_and_comes_back_to_where_it_was(browser, address, faults):
    tab = opened(browser, address, faults)
    for key in ("Enter", " "):
        tab.focus("th[data-order=loss] button")
        settled(tab, lambda key=key: tab.keyboard.press(key))
    assert tab.get_attribute("th[data-order=loss]", "aria-sort") == "ascending"
    tab.focus("details.maths summary >> nth=0")
    tab.keyboard.press(" ")
    assert tab.locator("details.maths").first.get_attribute("open") is not None
    tab.focus(".condition a[href='#row-7']")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("dialog[open]")
    assert tab.evaluate("document.activeElement.id") == "row-pane-title"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.closest('dialog') !== null")
    tab.keyboard.press("Escape")
    tab.wait_for_selector("dialog", state="hidden")
    assert tab.evaluate("document.activeElement.getAttribute('href')") == "#row-7"
    assert tab.evaluate("location.hash") == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_paper_it_is_light_unfolded_and_nothing_is_cut(browser, address, faults, scheme):
    tab = opened(browser, address, faults, color_scheme=scheme)
    folded = tab.locator("details:not([open])").count()
    assert folded > 3
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.emulate_media(media="print")
    tab.set_viewport_size({"width": 718, "height": 1000})  # A4 between margins of a centimetre
    tab.wait_for_timeout(800)
    assert tab.locator("details:not([open])").count() == 0
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(247, 248, 249)"
    assert tab.evaluate(TOO_WIDE) == []
    inks = tab.evaluate(INKS)
    assert inks and "rgb(228, 232, 235)" not in inks  # the ink of the dark screen
    assert not tab.is_visible("nav") and not tab.is_visible(".filters")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    tab.emulate_media(media="screen", color_scheme=scheme)
    assert tab.locator("details:not([open])").count() == folded


def test_a_browser_that_prints_does_so_itself(browser, address, faults):
    tab = opened(browser, address, faults)
    tab.evaluate(ASKED)
    assert len(tab.pdf(format="A4")) > 50_000
    assert tab.evaluate("window.asked") == 0
    assert tab.evaluate("document.documentElement.dataset.printing") is None
