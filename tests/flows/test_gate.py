"""The gate as a pure function of a result, and each way in which gate.yaml can be wrong."""

from __future__ import annotations

import pytest
import yaml

from foretune.flows.gate import Gate, GateVerdict, apply_gate, crossed_in_words, load_gate
from foretune.storage.errors import BadInput

RESULT = {
    "summary": {"heldout_loss_evaluated": 3.2, "flagged_rows": 7, "noise_scale_tokens": None, "answer": "Yes"},
    "signals": [
        {"name": "harmful_content", "severity": "critical", "value": 2},
        {"name": "dead_layer", "severity": "warn", "value": 1},
    ],
}


def judged(*rules: dict, accepted: dict | None = None):
    return apply_gate(Gate(rules=[{"reason": "agreed", **rule} for rule in rules]), RESULT, accepted)


def test_without_rules_of_its_own_a_gate_stops_critical_signals():
    verdict = apply_gate(Gate(), RESULT)
    assert verdict.verdict == "fail"
    assert [crossing.subject for crossing in verdict.crossings] == ["signal harmful_content"]


def test_nothing_crossed_is_a_pass():
    assert judged({"number": "flagged_rows", "above": 7}).verdict == "pass"
    assert judged({"number": "flagged_rows", "below": 7}).verdict == "pass"
    assert judged({"signal": "gradient_spike"}).verdict == "pass"


def test_the_worst_verdict_counts_and_every_crossing_is_listed():
    verdict = judged(
        {"number": "flagged_rows", "above": 5, "verdict": "warn"},
        {"number": "heldout_loss_evaluated", "above": 3.0, "reason": "agreed with support"},
    )
    assert verdict.verdict == "fail"
    assert [(c.value, c.threshold, c.verdict) for c in verdict.crossings] == [(7, 5, "warn"), (3.2, 3.0, "fail")]
    assert verdict.crossings[1].reason == "agreed with support"
    assert judged({"number": "flagged_rows", "above": 5, "verdict": "warn"}).verdict == "warn"


@pytest.mark.parametrize(
    ("verdict", "accepts", "accepted"),
    [
        ("pass", "pass", True),
        ("warn", "pass", False),
        ("warn", "warn", True),
        ("fail", "warn", False),
    ],
)
def test_what_later_versions_are_compared_with_is_what_passed(verdict, accepts, accepted):
    assert GateVerdict(verdict, [], []).accepted_by(Gate(accepts=accepts)) is accepted


def test_a_signal_counts_from_its_severity_on():
    assert judged({"signal": "dead_layer", "severity": "critical"}).verdict == "pass"
    assert judged({"signal": "dead_layer", "severity": "warn"}).verdict == "fail"
    assert len(judged({"signal": "any", "verdict": "warn"}).crossings) == 2


def test_a_change_is_measured_from_the_last_accepted_run():
    rule = {"number": "heldout_loss_evaluated", "rises_by": 0.1}
    assert judged(rule, accepted={"heldout_loss_evaluated": 3.15}).verdict == "pass"
    assert judged(rule, accepted={"heldout_loss_evaluated": 3.05}).verdict == "fail"
    assert judged({"number": "flagged_rows", "falls_by": 2}, accepted={"flagged_rows": 10}).verdict == "fail"


def test_without_an_accepted_run_a_change_is_skipped_and_says_so():
    verdict = judged({"number": "heldout_loss_evaluated", "rises_by": 0.1})
    assert (verdict.verdict, verdict.skipped) == ("pass", ["heldout_loss_evaluated rises_by"])


def test_a_number_without_a_value_does_not_pass():
    assert judged({"number": "noise_scale_tokens", "above": 1e9}).verdict == "fail"


@pytest.mark.parametrize("name", ["heldout_loss_evalated", "answer"])
def test_a_number_that_is_not_there_is_bad_input(name):
    with pytest.raises(BadInput, match=f"gate rule 1: no number {name} in the summary; nearest: "):
        judged({"number": name, "above": 1})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"number": "a", "signal": "b"}, "rules.1: a rule names either a number or a signal"),
        ({"above": 1}, "rules.1: a rule names either a number or a signal"),
        ({"number": "a"}, "rules.1: give exactly one of above, below, rises_by, falls_by for a"),
        ({"number": "a", "above": 1, "below": 0}, "rules.1: give exactly one of"),
        ({"signal": "a", "above": 1}, "rules.1: above needs a number, not a signal"),
        ({"number": "a", "abov": 1}, "unknown key rules.1.abov; the nearest key is rules.1.above"),
        ({"number": "a", "above": 1, "verdict": "stop"}, "rules.1.verdict: input should be 'warn' or 'fail'"),
    ],
)
def test_a_wrong_rule_is_one_line(tmp_path, rule, message):
    path = tmp_path / "gate.yaml"
    path.write_text(yaml.safe_dump({"rules": [{"reason": "agreed", **rule}]}))
    with pytest.raises(BadInput, match=message):
        load_gate(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", "not valid YAML"),
        ("- a", "the file holds no mapping"),
        ("rules: [{signal: any}]", "rules.1.reason is missing; add it"),
        ("rulse: []", "unknown key rulse; the nearest key is rules"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        load_gate(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(BadInput, match="no such file, or no regular one; give the path of a gate.yaml"):
        load_gate(str(tmp_path / "gate.yaml"))


def test_a_crossed_bound_is_said_with_its_own_number():
    verdict = judged({"number": "flagged_rows", "above": 5}, {"signal": "harmful_content", "severity": "warn"})
    said = [crossed_in_words(crossing) for crossing in verdict.as_dict()["crossings"]]
    assert said[0] == "flagged_rows is 7, above 5"
    assert said[1].startswith("signal harmful_content is ") and said[1].endswith(", at or beyond warn")


def test_a_gate_that_says_nothing_of_shipping_is_what_it_was():
    assert set(Gate().identity) == {"version", "rules", "accepts"}
    allowing = Gate.model_validate({"ship": {"allow": {"refusal": 0.1}, "ignore": ["identity"], "suites": False}})
    assert allowing.identity != Gate().identity
    assert (dict(allowing.ship.rules.allow), allowing.ship.rules.ignore) == ({"refusal": 0.1}, frozenset({"identity"}))
