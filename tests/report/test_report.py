"""The page as a browser's parser sees it: what it holds, and what hostile text cannot make of it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from foretune.tasks import report
from foretune.tasks.report.facts import facts
from foretune.tasks.report.views import BaselineView, QualityView, ReportView
from tests.report.conftest import COMMANDS, published

SECTIONS = (
    "rows", "supervision", "quality", "prompt_gain", "landscape", "features", "influence", "preference", "prediction",
    "model_diff", "answers", "behaviour", "causes",
)  # fmt: skip
ATTACKS = (
    "</script><script>window.stolen = 1</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--<script>",
    "{{ 7 * 7 }}{% raw %}",
    "<a href='javascript:alert(1)'>here</a><b>bold</b>",
    "]]>\u2028\u2029\x00\ud800\u202egnp.exe",
)
ATTACK = " ".join(ATTACKS)


class Page(HTMLParser):
    """Tags, attributes and the text of the page, by the standard library's parser."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def figures(self) -> dict[str, Any]:
        parts = [at for at, attrs in enumerate(self.named("script")) if attrs.get("class") == "figures"]
        return {name: figure for at in parts for name, figure in json.loads(self.scripts[at]).items()}

    def rows(self) -> Any:
        (at,) = (at for at, attrs in enumerate(self.named("script")) if attrs.get("id") == "rows-data")
        return json.loads(self.scripts[at])

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == name]


def poisoned(value: Any) -> Any:
    """`value` with the attack written into every text that it holds."""
    if isinstance(value, str):
        return ATTACK + value
    if isinstance(value, pd.DataFrame):
        # Arrow strings, pandas' default, refuse the lone surrogate of the attack.
        texts = value.columns.difference(value.select_dtypes(["number", "bool"]).columns)
        return value.assign(**{c: pd.Series([poisoned(v) for v in value[c]], dtype=object) for c in texts})
    if dataclasses.is_dataclass(value):
        held = {each.name: poisoned(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return type(value)(**held)
    if isinstance(value, dict):
        return {poisoned(key) if key not in KEYS else key: poisoned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [poisoned(item) for item in value]
    return value


KEYS = {
    "row", "score", "moves", "text", "length", "flags", "words", "rank", "verdict", "cluster", "tokens", "trained",
    "cut", "loss", "gain", "margin", "name", "severity", "value", "threshold", "advice", "task", "start",
    "rule", "says", "remedy", "every_row", "rows", "sequence", "position", "state", "special",
    "seconds", "cached", "kl", "context", "token", "p_base", "p_new", "top_base", "top_base_p", "top_new",
    "top_new_p", "heldout_loss_base", "heldout_loss_predicted", "heldout_loss_evaluated",
    "metric", "difference", "nodes_sum", "readout", "node_set", "module_set", "size", "recovered", "reached", "random",
    "parts", "wanted", "share", "carrying", "to", "controls", "loss_base", "loss_predicted", "feature", "label",
    "suite", "measures", "direction", "critical", "unit", "n", "left_out", "base", "predicted", "change", "low", "high",
    "up", "down", "p", "flips", "item", "question", "flip", "answer_base", "answer_predicted",
    "curve", "step", "gain_share", "band", "leaves_at", "last_within", "gain_within",
    "title", "more", "effect", "effect_in_words", "better", "helping", "sample_id", "z", "error", "without", "control",
    "measured", "measure", "reason", "items",
    # of a direction of the residual change, and its figures
    "kind", "relative", "z_null", "stability", "beyond_noise", "promoted", "suppressed", "hook",
    "null_deltas",
}  # fmt: skip


@pytest.fixture(scope="module")
def page(view: ReportView) -> Page:
    return Page(published(view))


@pytest.fixture(scope="module")
def attacked(view: ReportView) -> Page:
    return Page(published(poisoned(view)))


def test_the_first_screen_is_a_list_of_conditions_with_what_mends_them(page: Page) -> None:
    for wanted in (
        "Should I train? Not yet.",
        "Do rows harm held-out loss? 3 rows passes: none",
        "rows 41 , 7 , 88 and 2 more",
        "1 of 3 conditions pass",
        "foretune clean otter --drop-rows 41,7,88 -o clean.jsonl",
        "Is the gain more than chance? not measured passes: above the spread of real runs",
        "Gain +0.5 ± 0.04 nats per token",
        "90 % of the gain by step 24 of 36",
        "here 82 s",
        *COMMANDS,
    ):
        assert wanted in page.words
    order = [
        page.words.index(part) for part in ("▲ fail", "? open", "✓ pass", "Is it worth it?", "Rows that harm most")
    ]
    assert order == sorted(order)
    assert "latest" not in page.words and "{run}" not in page.words


def test_without_conditions_the_reasons_and_the_signals_are_shown(view: ReportView) -> None:
    bare = Page(published(dataclasses.replace(view, conditions=(), worth=None)))
    for wanted in (*view.reasons, "harmful content 2, threshold 0"):
        assert wanted in bare.words


def test_every_mention_of_a_row_leads_to_it(page: Page) -> None:
    linked = {attrs["href"] for attrs in page.named("a") if str(attrs.get("href")).startswith("#row-")}
    assert {"#row-41", "#row-7", "#row-88"} <= linked and len(linked) >= 6


def test_every_link_within_the_page_leads_somewhere(page: Page) -> None:
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    wanted = {str(attrs["href"])[1:] for attrs in page.named("a")}
    assert {target for target in wanted if not target.startswith("row-")} <= ids


def test_plotly_is_inlined_once_and_nothing_else_is_fetched(page: Page) -> None:
    assert len(page.scripts) == 6
    assert sum("plotly.js (cartesian" in script[:400] for script in page.scripts) == 1
    assert not any(attrs.get("src") or attrs.get("href", "#")[0] != "#" for _, attrs in page.tags)
    assert not page.named("link") and not page.named("iframe")


def test_the_policy_admits_exactly_the_scripts_of_the_page(page: Page) -> None:
    (policy,) = (attrs["content"] for attrs in page.named("meta") if attrs.get("http-equiv"))
    admitted = set(re.findall(r"'sha256-([^']+)'", policy))
    run = [code for code, attrs in zip(page.scripts, page.named("script"), strict=True) if not attrs.get("type")]
    assert admitted == {base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in run}
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_every_chart_has_a_figure_with_axis_titles(page: Page) -> None:
    figures = page.figures()
    drawn = [attrs["data-chart"] for attrs in page.named("div") if "data-chart" in attrs]
    assert sorted(drawn) == sorted(figures) and len(drawn) == 20
    for name, figure in figures.items():
        for axis in ("xaxis", "yaxis"):
            assert figure["layout"][axis]["title"]["text"], (name, axis)


def test_hostile_text_adds_no_element_and_no_attribute(page: Page, attacked: Page) -> None:
    assert {tag for tag, _ in attacked.tags} <= {tag for tag, _ in page.tags} | {"details", "summary"}
    run = [code for code, attrs in zip(page.scripts, page.named("script"), strict=True) if not attrs.get("type")]
    assert len(attacked.scripts) == len(page.scripts) and attacked.scripts[-len(run) :] == run
    names = {name for _, attrs in attacked.tags for name in attrs}
    assert not any(name.startswith("on") for name in names) and names <= {n for _, a in page.tags for n in a}
    assert not any(tag in ("img", "b") for tag, _ in attacked.tags)


def test_hostile_text_is_shown_as_text(attacked: Page) -> None:
    for shown in ATTACKS[:5]:
        assert shown in attacked.words


def test_hostile_text_leaves_no_markup_in_a_figure(attacked: Page) -> None:
    def texts(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [text for item in items for text in texts(item)]

    tags = {tag for text in texts(attacked.figures()) for tag in re.findall(r"<[^>]*>?", text)}
    assert tags <= {"<br>", "<b>", "</b>", "<extra>", "</extra>"}


def test_the_figures_hold_no_character_that_html_reads(view: ReportView) -> None:
    html = published(poisoned(view))
    for place in ('class="figures">', 'id="rows-data">'):
        payload = html.split(place)[1].split("</script>")[0]
        assert payload.isascii() and not set("<>&") & set(payload)
        json.loads(payload)


def test_invisible_characters_become_visible_and_the_page_is_utf8(view: ReportView) -> None:
    html = published(poisoned(view))
    head = html.encode("utf-8").decode().split('id="rows-data">')[0]
    assert not re.search("[\x00\u2028\u202e\ud800]", head) and "\\u202e" in head


@pytest.mark.parametrize("section", SECTIONS)
def test_a_pass_that_did_not_run_is_said_quietly(view: ReportView, section: str) -> None:
    page = Page(published(dataclasses.replace(view, **{section: None, "residual_change": None})))
    assert page.words.count("This pass was not part of the run.") == 1


def test_a_view_with_nothing_but_a_verdict_is_a_page(view: ReportView) -> None:
    page = Page(published(ReportView(header=view.header, answer="Yes", reasons=[])))
    assert page.words.count("This pass was not part of the run.") == len(SECTIONS)
    assert set(page.figures()) == {"timeline"} and "No signal was raised." in page.words


def test_the_page_is_small(view: ReportView) -> None:
    page = published(dataclasses.replace(view, rows=None))
    assert len(page.encode()) < 2_000_000


def test_the_bundle_is_that_of_the_plotly_that_is_installed() -> None:
    from plotly.offline import get_plotlyjs_version

    head = (Path(report.__file__).parent / "templates/plotly-cartesian.min.js").read_text()[:80]
    assert f"v{get_plotlyjs_version()}" in head


def test_a_clean_dataset_says_so(view: ReportView) -> None:
    samples = view.quality.samples.assign(flags=[[] for _ in range(len(view.quality.samples))])
    page = Page(published(dataclasses.replace(view, quality=QualityView(samples, {"duplicate": 0}))))
    assert "No row was flagged." in page.words and "dataset-flags" not in page.figures()


def test_an_invariant_that_was_not_looked_at_has_no_tick(page: Page) -> None:
    assert "? checkpoint verified not recorded" in page.words and page.words.replace("✓ pass", "").count("✓") == 4


def test_the_rows_are_in_the_page_with_all_that_is_said_of_them(page: Page, view: ReportView) -> None:
    rows = page.rows()
    assert [row["row"] for row in rows["rows"]] == list(range(96)) and rows["total"] == 96
    assert rows["rows"][31]["cluster"] == 30 and rows["rows"][41]["flags"] == ["harmful_content"]
    assert rows["heldout"] == {"3": "A held-out question."}


def test_a_sample_of_the_rows_says_so(view: ReportView) -> None:
    rows = dataclasses.replace(view.rows, total=100_000)
    assert "This page holds 96 of 100,000 rows" in Page(published(dataclasses.replace(view, rows=rows))).words


def test_the_same_view_gives_the_same_page(view: ReportView) -> None:
    assert published(view) == published(view)


def test_a_frame_without_its_columns_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"BaselineView.features lacks the columns \['firing_rate'\]; it has \['feature'\]"
    ):
        BaselineView(pd.DataFrame({"feature": [1]}), 1)


def test_words_of_the_settings_are_said_as_a_reader_knows_them() -> None:
    (ranked, *_) = facts("influence", {"ranked_by": "replayed", "replays_runs": 1024})
    assert (ranked.label, ranked.value) == ("rows ranked by", "1,024 simulated runs on random halves of the rows")
    (rule,) = facts("prediction", {"rule": "recursion"})
    assert (rule.label, rule.value) == ("end reached by", "the optimizer's own steps, one after the other")
    (explained,) = facts("sae_diff", {"explained_variance_new": 0.8})
    assert explained.unit == "share of the variance"


def test_the_model_diff_is_told_in_words_beside_noise_and_with_its_worst_tokens(view: ReportView) -> None:
    html = published(view)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html[html.index('id="model-diff"') :]))
    for words in (
        "Held-out rows 24 rows, 716 label tokens, the rows that the prediction is evaluated on",
        "3.65 → 3.15 nats per token: -0.5 (95 % interval -0.58 to -0.43)",
        "0.021 nats per token, median 0.003, 95 % of tokens below 0.11, largest 2.5",
        "error 0.11 → 0.041, Brier score 0.81 → 0.74",
        "the loss moves -14 null standard deviations (z -5.1)",
        "beside 8 random deltas of the same norm and rank per module",
        "5 → 8 of 16: lost and now won 4, won and now lost 1; as many each way would be chance with p = 0.375",
        "first directions of 3 of 4 modules",
        "KL 2.5 nats · held-out row · token 40 · from 1 % to 20 %",
        "base expects ␣door 30 %, &lt;/p&gt; 20 %, ↵ 10 % · predicted model ␣lamp 20 %",
    ):
        assert words in text, words
    assert "Where is &lt;b&gt;the&lt;/b&gt; red<mark>␣lamp</mark>" in html


def test_a_checkpoint_that_rounds_says_of_which_weights_its_figures_are(view: ReportView) -> None:
    from foretune.tasks.report.differences import _storage

    assert _storage({"checkpoint_dtype": "F32"}) == "" and _storage({}) == ""
    said = _storage({"checkpoint_dtype": "BF16"})
    changed = dataclasses.replace(view, model_diff=dataclasses.replace(view.model_diff, storage=said))
    assert "these figures are of the rounded weights" in published(changed)
    assert "rounded weights" not in published(view)
