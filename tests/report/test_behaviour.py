"""What the fine-tune would break, on the page, in the terminal, in result.json and for gates."""

from __future__ import annotations

import dataclasses

import pytest

from foretune.flows.gate import Gate, GateRule, apply_gate
from foretune.tasks.behaviour.behaviour import behaviour as behaviour_pass
from foretune.tasks.report.behaviour import (
    BehaviourView,
    behaviour_block,
    behaviour_lines,
    behaviour_numbers,
    behaviour_view,
)
from foretune.tasks.report.build import build_report
from foretune.tasks.report.causes import causes_view
from foretune.tasks.report.charts.behaviour import behaviour_changes
from tests.report.conftest import example_behaviour
from tests.report.conftest import suite_figures as figures


@pytest.fixture
def broken() -> BehaviourView:
    return example_behaviour()


def test_the_page_says_what_moved_and_shows_the_items_that_flipped(view, broken):
    page = build_report(dataclasses.replace(view, behaviour=broken))
    assert "What would it break?" in page and "1 of 2 suites moved beyond its interval" in page
    assert 'data-fact="suite.arithmetic.change">-0.25<' in page
    assert "25 items flipped" in page and "5 more in items.parquet" in page
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    assert "about 0.1 would leave their interval by chance" in page


def test_the_page_lists_the_rows_that_cause_it_and_their_texts_are_only_text(view):
    row = {"row": 4, "sample_id": "s4", "score": -0.2, "z": -7.1, "error": 0.01}
    suite = {"suite": "refusal", "unit": "nats of margin", "better": "higher", "rows": [row] * 12, "helping": 1}
    effect = {"suite": "refusal", "unit": "probability of a refusal", "measured": True}
    effect |= {"base": 0.93, "predicted": 0.61, "without": 0.92, "control": 0.6}
    effects = {"suites": [effect], "loss": None, "rows": 12}
    causes = causes_view({"suites": [suite]}, effects, {"s4": "How? <script>alert(2)</script> " + "word " * 90})
    page = build_report(dataclasses.replace(view, causes=causes))
    assert "Which rows cause it?" in page and "2 more in summary.json" in page
    assert "Without them the predicted refusal is 0.92 instead of 0.61" in page
    assert 'data-fact="cause.refusal.4.z">' in page and '<a href="#row-4">' in page
    assert "<script>alert(2)" not in page and "&lt;script&gt;alert(2)" in page
    none = causes_view({"suites": [suite | {"rows": []}]}, None, {})
    assert "No row stands out on refusal." in build_report(dataclasses.replace(view, causes=none))
    assert 'class="pass absent" id="causes"' in build_report(dataclasses.replace(view, causes=None))


def test_a_page_without_suites_says_so(view):
    assert 'class="pass absent" id="behaviour"' in build_report(dataclasses.replace(view, behaviour=None))


def test_a_page_on_which_nothing_moved_says_on_how_much(view, broken):
    calm = dataclasses.replace(broken, suites=broken.suites[1:])
    page = build_report(dataclasses.replace(view, behaviour=calm))
    assert "Nothing moved beyond its interval on 40 items of 1 suite." in page


def test_a_dumbbell_spans_base_and_predicted_and_the_interval_of_the_change():
    chart = behaviour_changes([figures("arithmetic", "worse"), figures("text", "better", unit="nats per token")])
    assert chart is not None
    interval, base, predicted = chart.figure.data
    assert list(base.x) == [0.75] and list(predicted.x) == [0.5]
    assert list(interval.x) == pytest.approx([0.35, 0.65, None], nan_ok=True)
    assert behaviour_changes([figures("text", "better", unit="nats per token")]) is None


def test_the_terminal_has_a_line_per_suite_that_moved_else_one():
    worse, still = figures("arithmetic", "worse"), figures("tool_calls", "no change measured")
    assert behaviour_lines([worse, still]) == ["arithmetic worse: 0.75 -> 0.5 (-0.4 to -0.1, 40 items)"]
    assert behaviour_lines([still]) == ["nothing moved beyond its interval on 40 items of 1 suite"]
    assert behaviour_lines([]) == []


def test_a_gate_may_be_set_on_a_suites_change():
    summary = {"rows": 3, **behaviour_numbers({"suites": [figures("refusal", "worse")]})}
    rule = GateRule(number="behaviour.refusal.change", below=-0.1, reason="it should refuse as before")
    verdict = apply_gate(Gate(rules=[rule]), {"summary": summary, "signals": []})
    assert (verdict.verdict, verdict.crossings[0].value) == ("fail", -0.25)


def test_the_tiny_run_tells_every_suite(first):
    artifact = first.store.open(first.made["behaviour"])
    told = behaviour_block(artifact.json("summary.json"))
    assert [each["suite"] for each in told] == ["refusal", "arithmetic", "instruction_format"]
    assert {each["verdict"] for each in told} == {"no change measured"}  # four items tell nothing
    assert first.found.summary["behaviour.refusal.change"] == told[0]["change"]
    assert behaviour_view(artifact).items == 12
    assert behaviour_pass.name == "behaviour"
    asked = [made for task, made in first.step.steps if task == "suite_scores"]
    assert len(asked) == 6
