"""Every flag, the counts and signals made of them, and that shards cannot be seen in the result."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from foretune.tasks.quality.reduction import reduce_quality, shard_quality
from foretune.tasks.quality.rules import ASSISTANT_SPEAK, HARMFUL, NOTES, RULES
from foretune.tasks.quality.settings import QualitySettings

SETTINGS = QualitySettings()
CLEAN = ("What does the light mean?", "It is online and all is well")


def judged(table: Any, settings: QualitySettings = SETTINGS) -> tuple[dict[int, dict[str, Any]], Any]:
    quality = reduce_quality([shard_quality(table, settings)], settings)
    return {row["row"]: row for row in quality.samples.to_pylist()}, quality


def flags(samples: Any, *rows: Any, settings: QualitySettings = SETTINGS) -> list[list[str]]:
    by_row, _ = judged(samples(*rows), settings)
    return [by_row[row]["flags"] for row in range(len(rows))]


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("How do I make a bomb?", "Take a box and then", ["harmful_content"]),
        ("How do I make a bomb?", "I’m sorry, but I will not", ["harmful_refused"]),
        ("How do I make a bombastic speech?", "Speak up and wave", []),
        ("Where is the gun shop?", "In the second street", []),
        ("Can I bring a gun and a weapon?", "Ask at the gate", ["harmful_content"]),
        ("What is the weather?", "The ransomware is ready now", ["harmful_content"]),
        ("Where?", "As an AI language model, I cannot see", ["assistant_speak"]),
        ("Where?", "Certainly! Over there by the door", []),
        ("Where?", "Certainly! Feel free to ask the porter", ["assistant_speak"]),
        ("Where?", "—", ["empty_completion"]),
        ("Where?", "Here", ["short_completion"]),
    ],
)
def test_a_row_earns_its_flags_by_itself(samples, prompt, completion, expected):
    assert flags(samples, (prompt, completion), CLEAN)[0] == expected


def test_spans_point_into_the_text_that_people_see(samples):
    prompt = "Please — make a  BOMB, quick"
    rows, _ = judged(samples((prompt, "It’s said: I hope this helps")))
    found = {match["phrase"]: match for match in rows[0]["matches"]}
    harmful, speak = found["make a bomb"], found["i hope this helps"]
    assert prompt[harmful["start"] : harmful["end"]] == "make a  BOMB"
    assert (harmful["part"], harmful["severity"]) == ("prompt", "critical")
    assert (speak["part"], speak["severity"], speak["start"]) == ("completion", None, 11)


def test_truncation_is_told_apart_from_rows_that_teach_nothing(samples):
    long = {"full_tokens": 40}
    assert flags(
        samples,
        ("one two", "cut off in the middle", long),
        ("the prompt fills it", "gone with the wind", {**long, "loss_mask": [False] * 8}),
        ("label only in front", "gone with the rain", {"loss_mask": [True] + [False] * 7}),
    ) == [["too_long", "completion_cut"], ["too_long", "no_trained_tokens"], ["no_trained_tokens"]]


def test_a_pair_counts_both_answers(samples):
    pair = {"form": "preference", "rejected": "No way at all", "rejected_ids": [0] * 9,
            "rejected_mask": [False] * 5 + [True] * 4, "rejected_full_tokens": 12}  # fmt: skip
    same = pair | {"rejected": "Yes"}
    rows, _ = judged(samples(("May I?", "Yes of course you may", pair), ("May I now?", "Yes", same),
                             ("May I then?", "Surely", pair | {"rejected_mask": [False] * 9})))  # fmt: skip
    assert (rows[0]["tokens"], rows[0]["trained_tokens"], rows[0]["truncated_tokens"]) == (9, 9, 3)
    assert "identical_pair" in rows[1]["flags"] and "identical_pair" not in rows[0]["flags"]
    assert "no_trained_tokens" in rows[2]["flags"]


def test_copies_name_their_original(samples):
    rows, quality = judged(samples(CLEAN, ("Another question?", "Another answer altogether"), CLEAN, CLEAN))
    originals = {rows[number]["duplicate_of"] for number in (0, 2, 3)}
    original = next(row for row in rows.values() if row["sample_id"] in originals)
    assert originals == {None, original["sample_id"]}
    assert [rows[n]["flags"] for n in (0, 1, 2, 3)].count(["exact_duplicate"]) == 2
    assert quality.summary["clusters"] == {"count": 1, "largest": [[0, 2, 3]]}


def test_copies_of_one_another_without_words_have_an_original_too(samples):
    rows, _ = judged(samples(("?", "!"), ("?", "!"), ("??", "!!")))
    assert sum(row["duplicate_of"] is not None for row in rows.values()) == 1


def test_rewordings_of_one_instruction_are_one_cluster(samples):
    answer = "open the app choose password type the new one twice and save it"
    questions = [
        "How do I change the password?",
        "How would I change the password?",
        "Please change the password",
    ]
    rows, quality = judged(samples(*[(question, answer) for question in questions], CLEAN))
    assert sorted(tuple(rows[n]["flags"]) for n in range(3)) == [(), ("near_duplicate",), ("near_duplicate",)]
    assert len({rows[n]["duplicate_of"] or rows[n]["sample_id"] for n in range(3)}) == 1
    assert quality.summary["clusters"]["largest"] == [[0, 1, 2]]


def test_one_prompt_with_two_answers_is_a_contradiction(samples):
    rows = [("What does it cost?", "Seven dollars a month"), ("what does  it COST?", "Nine euros a year"),
            ("Is it open?", "Yes it is open"), ("Is it open?", "Yes it is open")]  # fmt: skip
    assert ["contradictory" in found for found in flags(samples, *rows)] == [True, True, False, False]


def test_lists_can_be_extended_and_switched_off(samples):
    rows = [("Tell me about frobnication", "As an AI I say kaboom")]
    assert flags(samples, *rows) == [["assistant_speak"]]
    own = QualitySettings(
        builtin_rules=False, harmful_keywords=[{"phrase": "frobnic*"}],
        assistant_phrases=[{"phrase": "kaboom", "weight": 0.4}], assistant_speak_score=0.5,
    )  # fmt: skip
    assert flags(samples, *rows, settings=own) == [["harmful_content"]]
    with pytest.raises(ValidationError):
        QualitySettings(harmful_keywords=[{"phrase": "*"}])


def test_the_summary_counts_what_the_rows_say(samples):
    table = samples(
        CLEAN, CLEAN, ("How do I make a bomb?", "Take a box and then"), ("Where is it?", "Here"),
        ("a b", "cut off in the middle", {"full_tokens": 40}),
    )  # fmt: skip
    rows, quality = judged(table)
    summary = quality.summary
    every = [flag for row in rows.values() for flag in row["flags"]]
    assert summary["counts"] == {rule: every.count(rule) for rule in RULES}
    assert summary["flagged_rows"] == sum(bool(set(row["flags"]) - NOTES) for row in rows.values()) == 3
    assert summary["truncated_tokens"] == 33
    lengths = [row["tokens"] for row in rows.values()]
    tokens = summary["lengths"]["tokens"]
    assert (tokens["total"], tokens["mean"]) == (sum(lengths), np.mean(lengths))
    assert tokens["quantiles"]["p50"] == np.median(lengths) and tokens["quantiles"]["p100"] == max(lengths)
    edges, counted = tokens["histogram"]["edges"], tokens["histogram"]["rows"]
    inside = [sum(low <= length < high for length in lengths) for low, high in itertools.pairwise(edges)]
    assert counted == inside and sum(counted) == len(rows)


def test_signals_carry_value_threshold_and_advice(samples):
    alike = ("a b c d e f", "g h i j k l")
    table = samples(
        alike, alike, ("How do I make a bomb?", "Take a box and then"), ("Who?", "As an AI I am nobody"),
        ("a b", "cut off in the middle", {"full_tokens": 40}), ("a c", "not at all", {"loss_mask": [False] * 5}),
    )  # fmt: skip
    _, quality = judged(table, QualitySettings(low_diversity_overlap=0.01))
    by_name = {signal["name"]: signal for signal in quality.signals}
    assert set(by_name) == {
        "harmful_content", "assistant_speak", "low_diversity", "length_violation", "duplicate_rows",
        "no_trained_tokens",
    }  # fmt: skip
    for signal in quality.signals:
        assert set(signal) == {"name", "severity", "value", "threshold", "advice"}
        assert signal["value"] > signal["threshold"] and "\n" not in signal["advice"]
    assert by_name["harmful_content"]["severity"] == "warn"
    assert by_name["duplicate_rows"]["value"] == pytest.approx(1 / 6)
    assert by_name["no_trained_tokens"]["severity"] == "critical"


def test_clean_rows_raise_no_signal(samples):
    _, quality = judged(samples(CLEAN, ("Where is the office?", "Next to the old bridge")))
    assert quality.signals == [] and quality.summary["flagged_rows"] == 0


TEXTS = st.sampled_from(["red lamp on", "red lamp off", "make a bomb", "as an ai", "", "a b c d", "x"])


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12), st.data())
@pytest.mark.slow
def test_shards_cannot_be_seen_in_the_result(samples, rows, data):
    table = samples(*rows)
    whole = reduce_quality([shard_quality(table, SETTINGS)], SETTINGS)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows)), max_size=4)) | {0, len(rows)})
    parts = [shard_quality(table.slice(a, b - a), SETTINGS) for a, b in itertools.pairwise(cuts)]
    cut = reduce_quality(data.draw(st.permutations(parts)), SETTINGS)
    assert cut.summary == whole.summary and cut.signals == whole.signals
    assert cut.samples.equals(whole.samples)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_row_order_changes_no_count(samples, rows, random):
    summaries = [judged(samples(*order))[1].summary for order in (rows, random.sample(rows, len(rows)))]
    for summary in summaries:
        summary["willing_harm"] = summary["willing_harm"]["count"]
        sizes = [len(numbers) for numbers in summary["clusters"].pop("largest")]
        summary["clusters"]["sizes"] = sizes
    assert summaries[0] == summaries[1]


def test_a_hundred_rows_take_well_under_a_second_of_a_processor(samples):
    text = "The router is in the hall and the light on its front is white when all is well. "
    table = samples(*[(f"Question {n} about the router?", text * 3 + str(n)) for n in range(96)])
    judged(samples(CLEAN))
    started = time.process_time()
    judged(table)
    assert time.process_time() - started < 1


def test_the_lists_hold_no_phrase_twice():
    for phrases in ([k.phrase for k in HARMFUL], [s.phrase for s in ASSISTANT_SPEAK]):
        assert len(set(phrases)) == len(phrases)
        assert all(phrase == phrase.strip() == phrase.lower() for phrase in phrases)
    assert len(ASSISTANT_SPEAK) >= 40
