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
from foretune.tasks.report.conditions import Condition
from foretune.tasks.report.row_query import RowReader
from foretune.tasks.report.rows import rows_view
from foretune.tasks.report.shipping import decide
from foretune.tasks.report.versions_page import versions_page
from foretune.tasks.report.views import ReportView
from tests.report.browser import CHROMIUM, big_table, chromium, opened, serving
from tests.report.conftest import published
from tests.report.test_shipping import EVIDENCE, suite

pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")]

MANY = 100_000
BROKEN = dataclasses.replace(EVIDENCE, suites=[suite(-0.1, -0.2, -0.05)])
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


def like_the_demo() -> tuple[Condition, ...]:
    """One that fails, seven that ask for care or are open, five that pass: what the demo's page shows."""
    asked = Condition("any", "Do answers sound like a chat assistant?", 0.052, "share of rows", "at most 2 %", "warn",
                      (39, 75, 83, 91, 94), 5, "assistant speak: 5 rows with stock phrases of chat assistants; rewrite "
                      "or drop them", "foretune clean {run} --drop-flagged assistant_speak -o clean.jsonl")  # fmt: skip
    states = ("fail", *["warn"] * 6, "unknown", *["pass"] * 5)
    return tuple(dataclasses.replace(asked, name=f"c{n}", status=state) for n, state in enumerate(states))


def test_verdict_worth_and_loss_path_stand_on_the_first_screen(browser, view, faults, tmp_path):
    place = tmp_path / "report.html"
    shown = published(dataclasses.replace(view, conditions=like_the_demo()), ship=decide(BROKEN))
    place.write_text(shown, encoding="utf-8")
    tab = opened(browser, place.as_uri(), faults)
    tab.wait_for_selector("[data-chart='loss-path'] .main-svg")
    seen = {
        part: tab.locator(part).bounding_box()
        for part in (".verdict", ".worth .worth-list", "[data-chart='loss-path']")
    }
    ends = {part: round(box["y"] + box["height"]) for part, box in seen.items()}
    assert max(ends.values()) <= 900, ends
    assert tab.inner_text(".ship .figure") == "DON'T" and tab.locator(".ship").bounding_box()["height"] < 60
    assert not tab.is_visible(".ship li li >> nth=0")
    tab.click(".ship summary")
    assert "refusal gets worse by 0.1" in tab.inner_text(".ship ul")
    tab.click(".ship summary")
    lines = [each["height"] for each in (it.bounding_box() for it in tab.locator(".condition.warn").all())]
    assert len(lines) == 6 and max(lines) < 32  # a line each, until it is opened
    tab.click(".condition.warn summary >> nth=0")
    assert tab.is_visible(".condition.warn .command >> nth=0")
    assert tab.inner_text(".condition.pass > details > summary") == "5 of 13 conditions pass"
    assert not tab.is_visible(".passes li >> nth=0")
    tab.click(".condition.pass > details > summary")
    assert tab.locator(".passes li").count() == 5 and tab.is_visible(".passes li >> nth=4")


def test_on_a_phone_every_section_is_reached_by_its_link(browser, address, faults):
    tab = opened(browser, address, faults, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    bar = tab.locator("nav")
    assert bar.bounding_box()["height"] < 60 and bar.bounding_box()["width"] <= 390
    for link in tab.locator("nav li a").all():
        target = str(link.get_attribute("href"))
        link.scroll_into_view_if_needed()
        tab.wait_for_function(STILL)
        link.tap()
        tab.wait_for_function(
            """(id) => {
              const top = document.querySelector(id).getBoundingClientRect().top;
              const end = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
              return Math.abs(top - document.querySelector("nav").offsetHeight) < 16 || (end && top > 0);
            }""",
            arg=target,
        )
        box = bar.bounding_box()
        assert abs(box["y"]) < 1, f"the links are gone at {target}"
        tab.wait_for_function(SEEN, arg=target)
    for target in ("timeline", "verdict"):  # and the bar follows who scrolls
        tab.evaluate(f"document.getElementById('{target}').scrollIntoView({{ behavior: 'instant' }})")
        tab.wait_for_selector(f"nav a[href='#{target}'][aria-current]")
        tab.wait_for_function(SEEN, arg=f"#{target}")


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


STILL = """() => {
  const now = performance.now(), at = `${scrollY} ${document.querySelector("nav").scrollLeft}`;
  if (window.stillAt !== at) { window.stillAt = at; window.stillSince = now; }
  return now - window.stillSince > 300;
}"""
"""Neither page nor bar has moved for a while: a finger that comes down on what moves stops it, or taps another link."""
SEEN = """(id) => {
  const link = document.querySelector(`nav li a[href="${id}"]`), box = link.getBoundingClientRect();
  return box.left >= -1 && box.right <= innerWidth + 1;
}"""
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
  const edge = document.querySelector("main").getBoundingClientRect().right;
  const drawn = [...document.querySelectorAll(".plot .main-svg")].filter((each) => each.checkVisibility());
  window.drawn = drawn.length;
  window.wide = drawn.filter((each) => each.getBoundingClientRect().right > edge).length;
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
    assert tab.evaluate("window.drawn") > 20 and tab.evaluate("window.wide") == 0
    assert tab.evaluate("document.documentElement.dataset.printing") is None


def test_the_history_draws_losses_and_suites(browser, faults, tmp_path):
    suites = [{"refusal": {"base": 0.2, "predicted": 0.2 + c, "change": c, "verdict": "worse"}} for c in (-0.1, -0.2)]
    version = dict.fromkeys(("dataset", "rows", "rows_added", "rows_removed", "rows_kept", "flagged_rows", "verdict"))
    losses = {f"heldout_loss_{name}": 3.5 for name in ("base", "predicted", "evaluated")}
    version |= {**losses, "signals": [], "accepted": False, "against_accepted": {}, "ship": None, "suites": None}
    told = [version | {"run_id": f"run-{n}", "suites": each} for n, each in enumerate([None, *suites])]
    for each in suites:
        each["refusal"]["against_accepted"] = None
    place = tmp_path / "history.html"
    place.write_text(versions_page({"name": "tickets", "accepted": None, "versions": told}), encoding="utf-8")
    tab = browser.new_page()
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.goto(place.as_uri())
    tab.wait_for_selector("[data-chart='versions'] .main-svg")
    tab.locator("#suites").scroll_into_view_if_needed()
    tab.wait_for_selector("[data-chart='suites'] .main-svg")
    assert tab.locator("[data-chart='suites'] .scatterlayer .point").count() == 2  # and a gap where none was asked
    assert tab.locator("#suites tbody tr").count() == 3
