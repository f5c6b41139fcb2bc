"""The verdict's conditions: each says its figure and its remedy, and the worst one is the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from foretune.tasks.inputs.trust import horizon_signal, trust_of
from foretune.tasks.report.concepts import joined_concepts, moved_concepts, moving_order, speaking_like
from foretune.tasks.report.conditions import (
    Condition,
    Evidence,
    answer_of,
    clean_command,
    conditions_of,
    paired_error,
    worst,
    worth_of,
)

SUMMARY = {"heldout_loss_base": 4.0, "heldout_loss_evaluated": 3.5, "sharpness": 0.5, "clipped_modules": 0}
POINTS = [
    {"step": step, "predicted_loss": predicted, "evaluated_loss": evaluated}
    for step, predicted, evaluated in ((0, 4.0, 4.0), (12, 3.6, 3.66), (24, 3.55, 3.56), (48, 3.5, 3.48))
]


def judged(**changes: Any):
    given: dict[str, Any] = {"summary": SUMMARY, "signals": [], "trust": trust_of(POINTS, 0.1), "leaked": []}
    return conditions_of(Evidence(**(given | changes)))


def signal(name: str, severity: str, value: float = 3) -> dict[str, Any]:
    return {"name": name, "severity": severity, "value": value, "threshold": 2, "advice": "look"}


def by_name(conditions):
    return {each.name: each for each in conditions}


def test_without_a_fault_the_answer_is_yes_and_every_condition_passes():
    found = judged()
    assert {each.status for each in found} == {"pass"}
    assert answer_of(found) == ("Yes", ["no fault found; the predicted held-out loss falls"])
    assert clean_command(found) == ""


@pytest.mark.parametrize(("severity", "answer"), [("info", "Yes"), ("warn", "Yes, with care"), ("critical", "Not yet")])
def test_the_worst_condition_is_the_answer(severity, answer):
    found = judged(signals=[signal("harmful_content", severity)], rows={"harmful_content": [4, 9, 2]})
    assert answer_of(found)[0] == answer and worst(found) == by_name(found)["harmful_content"].status
    assert by_name(found)["harmful_content"].rows == (2, 4, 9)
    assert by_name(found)["harmful_content"].band == "no row"  # not "at most 2": two rows do not pass


def test_a_rise_of_held_out_loss_and_no_number_stop():
    for loss in (4.1, float("nan")):
        found = judged(summary=SUMMARY | {"heldout_loss_evaluated": loss})
        assert answer_of(found)[0] == "Not yet" and "would" in answer_of(found)[1][0]


def test_a_signal_that_no_condition_knows_still_counts():
    assert answer_of(judged(signals=[signal("new_fault", "critical")]))[0] == "Not yet"


def test_more_than_five_rows_are_named_and_counted():
    harming = [{"row": row, "score": 0.01} for row in range(10, 22)]
    condition = by_name(judged(harming=harming, method="replays"))["harming_rows"]
    assert condition.rows == (10, 11, 12, 13, 14) and condition.row_count == 12 and condition.status == "warn"
    assert "rows 10, 11, 12, 13, 14 and 7 more raise" in condition.reason and "by replays" in condition.reason
    assert condition.remedy == "foretune clean {run} --drop-worst 12 -o clean.jsonl"


def test_rows_that_harm_by_a_hair_are_told_and_stop_nothing():
    condition = by_name(judged(harming=[{"row": 1, "score": 0.001}]))["harming_rows"]
    assert condition.status == "pass" and condition.row_count == 1


def test_the_suggested_command_covers_flags_and_influence():
    harming = [{"row": row, "score": 0.01} for row in range(4)]
    rows = {"harmful_content": [32, 55, 90], "no_trained_tokens": [19], "near_duplicate": [3]}
    raised = [
        signal("harmful_content", "critical"),
        signal("no_trained_tokens", "warn"),
        signal("duplicate_rows", "warn"),
    ]
    found = judged(signals=raised, harming=harming, rows=rows)
    wanted = "--drop-flagged harmful_content --drop-flagged no_trained_tokens --drop-worst 4"
    assert clean_command(found) == f"foretune clean {{run}} {wanted} -o clean.jsonl"
    looked = judged(signals=[signal("harmful_content", "warn")], rows=rows)
    assert clean_command(looked) == ""  # a flag alone is a reason to look


def test_leakage_is_told_and_unknown_where_nobody_looked():
    leaked, unknown = by_name(judged(leaked=[3])), by_name(judged(leaked=None))
    assert leaked["leakage"].status == "warn" and leaked["leakage"].reason.startswith("row 3 is a held-out row too")
    assert unknown["leakage"].status == "unknown" and unknown["leakage"].value is None


def test_a_path_that_is_good_again_at_its_end_is_trusted_there():
    trust = trust_of(POINTS, 0.05)
    assert trust.trusted_steps == 0 and trust.at_the_end and not trust.whole
    words = "parted by 0.06 nats at step 12 of 48, within tolerance again at the end: error 0.02"
    assert trust.words == words
    raised = horizon_signal(trust, "this run")
    assert raised is not None and raised["severity"] == "info" and words in raised["advice"]
    condition = by_name(judged(trust=trust, signals=[raised]))["trust"]
    assert condition.status == "pass" and condition.value == pytest.approx(0.02)


def test_a_path_that_ends_apart_warns():
    trust = trust_of([*POINTS[:3], {"step": 48, "predicted_loss": 3.5, "evaluated_loss": 3.9}], 0.1)
    assert trust.words == "up to step 24 of 48; parted by 0.40 nats at step 48 of 48"
    found = judged(trust=trust, signals=[horizon_signal(trust, "this run")])
    assert answer_of(found)[0] == "Yes, with care" and "up to step 24" in answer_of(found)[1][0]


def test_the_worth_rests_on_evaluated_points():
    worth = worth_of(SUMMARY, POINTS, [3.50, 3.54])
    assert (worth.gain, worth.steps, worth.step_at_90) == (0.5, 48, 48)
    assert worth.spread == pytest.approx(0.0283, rel=1e-2) and worth.gain_error is None
    ends = worth_of(SUMMARY, [POINTS[0], POINTS[-1]])
    assert ends.step_at_90 is None and ends.spread is None  # between start and end nobody looked


def rows_of(rng: Any, count: int, tokens: Any) -> list[dict[str, Any]]:
    base = rng.normal(4, 1, count)
    new = base - rng.normal(0.3, 0.2, count)
    return [
        {"tokens": int(t), "loss_base": b * t, "loss_new": n * t} for t, b, n in zip(tokens, base, new, strict=True)
    ]


def test_the_error_of_the_gain_is_that_of_a_mean_of_differences_where_rows_are_equally_long():
    rows = rows_of(np.random.default_rng(0), 40, [50] * 40)
    gains = [(row["loss_base"] - row["loss_new"]) / 50 for row in rows]
    assert paired_error(rows) == pytest.approx(np.std(gains, ddof=1) / 40**0.5)


def test_the_error_of_the_gain_is_how_far_other_rows_would_have_put_it():
    rng = np.random.default_rng(1)
    draws = [rows_of(rng, 60, rng.integers(5, 200, 60)) for _ in range(400)]
    gains = [sum(r["loss_base"] - r["loss_new"] for r in rows) / sum(r["tokens"] for r in rows) for rows in draws]
    errors = [paired_error(rows) or 0.0 for rows in draws]
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.1)
    assert paired_error(draws[0][:1]) is None


def test_what_the_worth_lacks_is_named_with_what_would_measure_it():
    whole = worth_of(SUMMARY, POINTS, [3.50, 3.54], gain_error=0.1)
    assert whole.gain_error == 0.1 and whole.unmeasured() == []
    missing = worth_of(SUMMARY, [POINTS[0], POINTS[-1]]).unmeasured()
    assert [words.split(" (")[0] for words in missing] == [
        "the gain's error",
        "the spread between two real runs",
        "the step with 90 % of the gain",
    ]


MEASURED = [
    {"feature": 0, "base": 1.0, "change": 0.30, "z": 8.0},
    {"feature": 1, "base": 1.0, "change": 0.50, "z": 1.0},  # within its noise
    {"feature": 2, "base": 0.0, "change": 0.40, "z": 4.0},
    {"feature": 3, "base": 2.0, "change": -0.50, "z": -9.0},
]
SCORED = [
    {"feature": n, "label": label, "score": score, "predicted_change": 0.1}
    for n, (label, score) in enumerate([("a", -9.0), ("b", 9.0), ("As an «AI» language", 1.0), ("d", 5.0)])
]


def test_concepts_are_named_and_ordered_by_what_was_measured():
    up, down = moved_concepts(joined_concepts(SCORED, MEASURED))
    assert [c["feature"] for c in up] == [2, 0] and [c["feature"] for c in down] == [3]
    assert up[0]["relative"] is None and down[0]["relative"] == -0.25 and down[0]["score"] == 5.0
    assert {"change", "relative", "z", "score", "predicted_change"} <= set(up[0])
    assert moving_order([1.0, float("nan"), -1.0]) == ([0], [2])


def test_behaviour_is_told_only_where_its_concept_grows():
    up, down = moved_concepts(joined_concepts(SCORED, MEASURED))
    assert speaking_like(up, ["as an ai", "^sure!"])["feature"] == 2
    assert speaking_like(down, ["as an ai"]) is None and speaking_like(up, []) is None


@pytest.mark.parametrize(
    ("value", "unit", "figure"),
    [
        (0.0520833, "share of rows", "5.2 %"),
        (1.0, "share of rows", "100 %"),
        (0.0003, "share of rows", "0.03 %"),
        (-0.20849, "relative change", "-21 %"),
        (0.0026788, "nats per token", "0.00268"),
        (12345, "rows", "12,345"),
        (None, "rows", "not measured"),
    ],
)
def test_a_figure_reads_as_people_write_it(value, unit, figure):
    assert Condition("any", "Any?", value, unit, "none", "pass").figure == figure


def test_every_band_is_a_number_of_the_settings_or_none_of_something():
    limits = {"duplicate_rows": 0.02, "sharp_landscape": 10.0, "low_diversity": 0.5, "dead_layer": 1e-6}
    raised = [signal(name, "warn") | {"threshold": 0.25} for name in ("low_diversity", "dead_layer", "delta_clipped")]
    bands = {each.name: each.band for each in judged(signals=raised, limits=limits)}
    assert bands["duplicate_rows"] == "at most 2 %" and bands["sharp_landscape"] == "at most 10"
    assert bands["low_diversity"] == "at most 50 % on average" and bands["dead_layer"] == "none with a norm below 1e-06"
    assert bands["delta_clipped"] == "none"  # its threshold is a share of a norm, its value a count
    assert bands["trust"] == "at most 0.1 from the evaluated loss"
    assert bands["harming_rows"] == "at most 0.005, 1 % of the gain"
    mismatched = judged(signals=[signal("answer_mismatch", "warn", 1) | {"threshold": 0.36}])
    assert by_name(mismatched)["answer_mismatch"].band == "at most 0 that do not"  # not a third of a row
    assert not {"flat", "few", "low", "nearly all"} & {*bands.values()}


def test_what_stays_below_its_limit_is_told_with_its_figure():
    found = by_name(judged(summary=SUMMARY | {"rows": 200}, rows={"near_duplicate": [7, 9]}))["duplicate_rows"]
    assert (found.status, found.value, found.figure, found.rows) == ("pass", 0.01, "1 %", (7, 9))
