"""Ship or not as a pure function: each verdict, each reason, and the values at which one becomes the other."""

from __future__ import annotations

import dataclasses
import math

import pytest

from foretune.tasks.report.ship_evidence import loss_figure, noise_in_words, pair_figures, rate_interval, suite_figures
from foretune.tasks.report.shipping import (
    Check,
    Measured,
    ShipEvidence,
    ShipRules,
    decide,
    suite_check,
    task_check,
)

LOSS = Measured(
    "heldout_loss", 3.9, 3.6, -0.3, -0.35, -0.25, 0.01, "lower", "nats per token", 64, "rows",
    "6 null deltas and 2 other orders",
)  # fmt: skip
SUITE = Measured(
    "refusal", 0.5, 0.5, 0.0, -0.02, 0.02, 0.03, "higher", "probability of a refusal", 40, "items",
    "2 null deltas and 2 other orders on 8 items",
)  # fmt: skip
EVIDENCE = ShipEvidence([LOSS], [SUITE], True, "whole run")


def suite(change, low, high, **changes):
    return dataclasses.replace(SUITE, predicted=0.5 + change, change=change, low=low, high=high, **changes)


def with_suites(*suites, **changes):
    return dataclasses.replace(EVIDENCE, suites=list(suites), **changes)


def test_what_improves_beyond_noise_and_breaks_nothing_ships():
    decision = decide(EVIDENCE)
    assert decision.verdict == "SHIP"
    assert decision.reasons == [
        "held-out loss falls by 0.3 nats per token (-0.35 to -0.25), noise 0.01",
        "none of 1 suite gets worse beyond its floor",
    ]
    assert decision.remedies == []


@pytest.mark.parametrize(
    ("changes", "outcome", "said"),
    [
        ({}, "pass", "falls by 0.3"),
        ({"change": -0.0101, "low": -0.02, "high": -0.001}, "pass", "falls by 0.0101"),
        ({"change": -0.01, "low": -0.02, "high": -0.001}, "fail", "no more than noise does (0.01, 6 null deltas"),
        ({"change": -0.3, "low": -0.7, "high": 0.0}, "unknown", "its interval (-0.7 to +0) includes zero"),
        ({"change": -0.3, "low": -0.7, "high": -1e-9}, "pass", "falls by 0.3"),
        ({"change": 0.0, "low": -0.1, "high": 0.1}, "fail", "does not change: no improvement"),
        ({"change": 0.2, "low": -0.1, "high": 0.5}, "fail", "rises by 0.2 nats per token: no improvement"),
        ({"change": math.nan}, "fail", "would be no number"),
        ({"floor": None, "floor_from": "set diff.nulls.deltas: 6"}, "unknown", "was not measured"),
        ({"floor": 0.0}, "pass", "noise 0"),
        ({"low": None, "high": None}, "unknown", "has no interval"),
        ({"low": None, "high": None, "needs_interval": False}, "pass", "falls by 0.3"),
        ({"count": 7}, "unknown", "rests on 7 rows, below 8"),
        ({"count": 8}, "pass", "falls by 0.3"),
        ({"count": None}, "pass", "falls by 0.3"),
        ({"count": 7, "change": 0.2}, "unknown", "rests on 7 rows"),
        ({"direction": "higher", "change": 0.2, "low": 0.1, "high": 0.3}, "pass", "rises by 0.2"),
        ({"direction": "higher", "change": -0.2, "low": -0.3, "high": -0.1}, "fail", "falls by 0.2"),
    ],
)
def test_the_task_must_improve_by_its_interval_and_beyond_noise(changes, outcome, said):
    check = task_check(dataclasses.replace(LOSS, **changes))
    assert check.outcome == outcome and said in check.reason
    assert bool(check.remedy) == (outcome != "pass")
    expected = {"pass": "SHIP", "fail": "DON'T", "unknown": "INCONCLUSIVE"}[outcome]
    assert decide(dataclasses.replace(EVIDENCE, task=[dataclasses.replace(LOSS, **changes)])).verdict == expected


@pytest.mark.parametrize(
    ("figure", "outcome", "said"),
    [
        (suite(-0.1, -0.2, -0.05), "fail", "refusal gets worse by 0.1 (0.5 -> 0.4), interval -0.2 to -0.05"),
        (suite(-0.1, -0.2, 0.0), "unknown", "beyond 0.03, but its interval (-0.2 to +0) includes zero"),
        (suite(-0.03, -0.04, -0.02), "pass", "no more than 0.03 (2 null deltas"),
        (suite(-0.0301, -0.04, -0.02), "fail", "gets worse by 0.0301"),
        (suite(-0.001, -0.002, -0.0005, floor=1e-6), "pass", "no more than 0.001 (the smallest that counts)"),
        (suite(-0.0011, -0.002, -0.0005, floor=1e-6), "fail", "gets worse by 0.0011"),
        (suite(0.1, 0.05, 0.2), "pass", "does not get worse"),
        (suite(0.1, 0.05, 0.2, direction="lower"), "fail", "gets worse by 0.1"),
        (suite(-0.1, -0.2, -0.05, direction="lower"), "pass", "does not get worse"),
        (suite(-0.1, -0.2, -0.05, direction="either"), "not judged", "neither way is better"),
        (suite(-0.1, -0.2, -0.05, floor=None, floor_from="set it"), "unknown", "what noise does was not measured"),
        (suite(-0.1, -0.2, 0.1, floor=None, floor_from="set it"), "unknown", "what noise does was not measured"),
        (suite(0.0, 0.0, 0.0, floor=None, floor_from="set it"), "pass", "does not get worse"),
        (suite(-0.1, -0.2, -0.05, count=7), "unknown", "rests on 7 items, below 8"),
        (suite(-0.1, -0.2, -0.05, count=8), "fail", "gets worse by 0.1"),
        (suite(math.nan, -0.2, -0.05), "unknown", "rests on"),
    ],
)
def test_no_suite_may_get_worse_beyond_noise(figure, outcome, said):
    check = suite_check(figure, ShipRules())
    assert check.outcome == outcome and said in check.reason and check.name == "suite.refusal"
    expected = {"fail": "DON'T", "unknown": "INCONCLUSIVE"}.get(outcome, "SHIP")
    assert decide(with_suites(figure)).verdict == expected


@pytest.mark.parametrize(
    ("rules", "figure", "outcome", "floor"),
    [
        (ShipRules({"refusal": 0.1}), suite(-0.1, -0.2, -0.05), "pass", 0.1),
        (ShipRules({"refusal": 0.09}), suite(-0.1, -0.2, -0.05), "fail", 0.09),
        (ShipRules({"refusal": 0.01}), suite(-0.03, -0.04, -0.02), "pass", 0.03),  # noise does more than is allowed
        (ShipRules({"refusal": 0.2}), suite(-0.1, -0.2, -0.05, floor=None), "pass", 0.2),
        (ShipRules({"other": 0.2}), suite(-0.1, -0.2, -0.05), "fail", 0.03),
        (ShipRules(ignore=frozenset({"refusal"})), suite(-0.1, -0.2, -0.05), "not judged", 0.03),
    ],
)
def test_a_gate_allows_or_ignores_by_suite(rules, figure, outcome, floor):
    check = suite_check(figure, rules)
    assert (check.outcome, check.floor) == (outcome, floor)
    assert ("allowed by the gate" in check.floor_from) == (floor in rules.allow.values())


def test_what_the_verdict_stands_on_can_leave_it_open():
    untrusted = decide(dataclasses.replace(EVIDENCE, trusted=False, trust="up to step 3 of 9"))
    assert untrusted.verdict == "INCONCLUSIVE" and "beyond its horizon at its end: up to step 3" in untrusted.reasons[0]
    leaked = decide(dataclasses.replace(EVIDENCE, leaked="5 of 9 held-out rows stand in the training rows"))
    assert leaked.verdict == "INCONCLUSIVE" and leaked.reasons[0].startswith("held-out rows are leaked: 5 of 9")
    nothing = decide(with_suites())
    assert nothing.verdict == "INCONCLUSIVE" and "behaviour.enabled" in nothing.remedies[0]


def test_the_task_alone_ships_where_a_gate_asks_for_no_suite():
    decision = decide(with_suites(), ShipRules(suites=False))
    assert decision.verdict == "SHIP" and decision.reasons[-1] == "no suite was judged"
    assert decide(with_suites(suite(-0.1, -0.2, -0.05)), ShipRules(suites=False)).verdict == "SHIP"


def test_what_fails_is_told_before_what_is_open_and_a_gate_is_a_reason():
    broken = with_suites(suite(-0.1, -0.2, -0.05), trusted=False, trust="at none of the 9 steps")
    decision = decide(broken, None, [Check("gate.rows", "fail", "the gate fails it: rows is 3, below 5")])
    assert decision.verdict == "DON'T"
    assert [reason.split()[0] for reason in decision.reasons] == ["the", "refusal"]
    assert len(decision.remedies) == 2
    assert decide(EVIDENCE, None, [Check("gate", "pass", "no rule of the gate is crossed")]).verdict == "SHIP"


DIFF = {
    "heldout_loss_base": 3.9, "heldout_loss_new": 3.6, "heldout_loss_change": -0.3, "heldout_loss_change_low": -0.35,
    "heldout_loss_change_high": -0.25, "heldout_rows": 64, "compared_pairs": 40, "win_rate_base": 0.3,
    "win_rate_new": 0.6, "flips_to_won": 13, "flips_to_lost": 1,
}  # fmt: skip
PREDICTED = {"heldout_loss_base": 0.69, "heldout_loss_evaluated": 0.5}


def test_the_floor_of_the_loss_is_the_largest_change_that_noise_made():
    figure = loss_figure(DIFF, PREDICTED, [0.004, -0.02], [0.001, -0.0005])
    assert figure.floor == pytest.approx(0.02) and figure.floor_from == "2 null deltas and 2 other orders"
    assert (figure.change, figure.low, figure.high, figure.count) == (-0.3, -0.35, -0.25, 64)
    unmeasured = loss_figure(DIFF, PREDICTED, [], [])
    assert unmeasured.floor is None
    assert "diff.nulls.deltas: 6" in unmeasured.floor_from and "behaviour.path.orders: 2" in unmeasured.floor_from


def test_a_run_without_a_model_diff_has_no_interval():
    figure = loss_figure({}, PREDICTED, [0.01], [])
    assert figure.change == pytest.approx(-0.19)
    assert task_check(figure).outcome == "unknown" and "no interval" in task_check(figure).reason


def test_pairs_are_judged_by_their_win_rate_and_their_loss():
    rate, loss = pair_figures(DIFF, PREDICTED, [0.01, -0.03])
    assert rate.change == pytest.approx(0.3) and rate.low > 0 and rate.count == 40
    assert (loss.change, loss.floor, loss.low) == (pytest.approx(-0.19), 0.03, None)
    assert [task_check(each).outcome for each in (rate, loss)] == ["pass", "pass"]
    assert task_check(pair_figures(DIFF, PREDICTED, [0.2])[1]).outcome == "fail"
    _, unmeasured = pair_figures(DIFF, PREDICTED, [])
    assert task_check(unmeasured).outcome == "unknown" and "behaviour.path.orders: 2" in task_check(unmeasured).remedy


def test_the_interval_of_a_win_rate_is_the_bootstrap_over_pairs():
    import numpy as np

    flips = np.array([1] * 13 + [-1] + [0] * 26)
    generator = np.random.default_rng(7)
    means = [flips[generator.integers(0, 40, 40)].mean() for _ in range(10_000)]
    assert rate_interval(13, 1, 40) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.026)
    assert rate_interval(0, 0, 40) == (0.0, 0.0)


def test_suites_take_their_floor_from_the_items_that_were_asked_along_the_path():
    told = {"suite": "refusal", "base": 0.5, "predicted": 0.4, "change": -0.1, "low": -0.2, "high": -0.05, "n": 40}
    told |= {"direction": "higher", "unit": "share"}
    along = {"suite": "refusal", "band": 0.02, "n": 8, "orders": [0.02], "nulls": [0.01, 0.0]}
    (figure,) = suite_figures({"suites": [told]}, {"suites": [along]})
    assert (figure.floor, figure.count) == (0.02, 40)
    assert figure.floor_from == "2 null deltas and 1 other order on 8 items"
    (bare,) = suite_figures({"suites": [told]}, None)
    assert bare.floor is None and "behaviour.path.nulls: 2" in bare.floor_from
    assert suite_figures(None, None) == []


def test_noise_in_words():
    assert noise_in_words(6, 0) == "6 null deltas"
    assert noise_in_words(None, 1) == "1 other order"
