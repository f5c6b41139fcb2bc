"""Rows cleared together: what is read without an object a row is what the rules say of each row by itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretune.storage.row_batches import Lines
from foretune.tasks.quality import lint_batch, near
from foretune.tasks.quality.diversity import jaccard
from foretune.tasks.quality.lint import lint
from foretune.tasks.quality.lint_batch import BatchLinter
from foretune.tasks.quality.settings import QualitySettings
from foretune.tasks.quality.word_arrays import NON_SPACE, buffer_of, hash_of, short, words_of
from foretune.tasks.samples.column_names import ColumnNames
from foretune.tasks.samples.forms import KNOWN_FORMS, canonical_rows, shown_texts
from foretune.tasks.samples.ids import identify
from foretune.tasks.samples.plain_rows import plain_row

# Pieces of which texts are made that are nearly, or just, what some rule looks for.
PIECES = [
    "the", "and of it", "gun", "begun", "kill", "methods", "meth", "steal a bomb", "I'm sorry, but", "I cannot",
    "as an AI", "Certainly!", "in summary,", "I hope this helps", "<|im_end|>", "[INST]", "</p>", "a@b.org", "task-",
    "sk-" + "aZ3kD9" * 8, "4111 1111 1111 1111", "555-555-1234", "+49 30 1234567", "1,234,567", "12.10.2024 10",
    "DE89 3704", "DE89 3704 0044 0532 0130 00", "2024", "```", "`x`", "\t", "  ", "\n\n", "‘so’", "“so”", "–", "\u00a0",
    "é", "Â£", "…", "\u200b", "\x00", "\x1b[0m", "\x7f", "\x1c", "{{name}}", "TBD", "\\n", "&amp;", "nicht der die das",
    "el los una con por", "Human:", "\nUser: hi", "go on. go on. go on. go on. go on. go on.", "{'role': 'user'",
    "all rights reserved", "copyright ©", "日本語の",
    "how many routers stand in the hall of the old station by the river",
]  # fmt: skip
CLEAN = "{} A little boat {} lay by the quiet shore {} until it was morning {}"
SLOTS = st.just("") | st.sampled_from(PIECES)
# Mostly clean, so that what one piece brings about is all that can be said of a row.
NEARLY = st.tuples(SLOTS, *[st.just("")] * 3).flatmap(st.permutations).map(lambda each: CLEAN.format(*each).strip(" "))
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join) | st.text(max_size=12)
EITHER = NEARLY | TEXTS


def said(rows: list[dict[str, Any]], **changes: Any) -> tuple[Any, ...]:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    made = BatchLinter(QualitySettings(**changes), ColumnNames()).lint(Lines(1, data))
    return (
        made.found, made.characters, made.forms, *(
            getattr(made, name).tolist() for name in
            ("read", "ids", "prompts", "completions", "languages", "form", "willing", "words", "ends", "bands")
        ),
    )  # fmt: skip


@settings(max_examples=80)
@given(st.lists(st.tuples(EITHER, EITHER), min_size=1, max_size=6), st.sampled_from(["prompt", "question"]))
@pytest.mark.slow
def test_what_is_cleared_has_nothing_to_say(pairs, column):
    names = (column, "completion" if column == "prompt" else "answer")
    check_cleared([dict(zip(names, pair, strict=True)) for pair in pairs])


@pytest.mark.parametrize("part", ["prompt", "completion"])
def test_each_piece_by_itself(part):
    plain = {"prompt": CLEAN.format(*"abcd"), "completion": "The boat came home before the night was over."}
    check_cleared([plain | {part: CLEAN.format(*["x"] * at, piece, *["y"] * (3 - at))} for piece in PIECES
                   for at in range(4)])  # fmt: skip


def check_cleared(rows: list[dict[str, Any]]) -> None:
    """Cleared together, rows say what each says when it is looked at."""
    own = [{"id": "ours", "patterns": ["h[o]w"], "parts": ["prompt"]}]
    together = said(rows, own=own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lint_batch, "ascii_twin", lambda text: None)
        patch.setattr(lint_batch, "plain_row", lambda row: None)
        assert said(rows, own=own) == together


COLUMNS = sorted({name for form in KNOWN_FORMS for name in (*form.required, *form.optional)} | {"id", "tools"})


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(COLUMNS), TEXTS, min_size=1, max_size=5))
def test_a_plain_row_is_the_canonical_row(row):
    read = plain_row(row)
    if read is not None:
        (canonical,) = canonical_rows([row])
        assert (read.prompt, read.completion, None) == shown_texts(canonical)
        assert read.content_id == identify([canonical])[0].content_id
        assert (read.form, read.conversational) == (canonical.form, canonical.conversational)


def test_the_usual_forms_are_plain():
    for names in (("prompt", "completion"), ("question", "answer"), ("instruction", "input", "output"), ("text",)):
        assert plain_row(dict.fromkeys(names, "so")) is not None
    for names in (("prompt", "chosen", "rejected"), ("messages",), ("instruction", "output", "system"), ("foo",)):
        assert plain_row(dict.fromkeys(names, "so")) is None


@given(st.lists(st.lists(st.text("abyz09_é", min_size=1, max_size=12), max_size=9), max_size=5))
def test_words_as_arrays_are_the_words(texts):
    found = words_of(buffer_of([" ".join(text) for text in texts]) if texts else np.zeros(1, np.uint8), NON_SPACE)
    assert found.total.tolist() == [len(text) for text in texts]
    assert found.different.tolist() == [len(set(text)) for text in texts]
    for number, text in enumerate(texts):
        assert found.hashes[found.text == number].tolist() == sorted(hash_of([word])[0] for word in set(text))


def test_near_duplicates_are_found_alone_in_crowds_and_in_chains():
    draw = np.random.default_rng(0)
    one = draw.integers(0, 2**32, (3000, 40), np.uint32)
    one[:, :9] = one[0, :9]  # what all say: by chance many agree in a band
    one[1500:] = one[:1500]
    one[1500:, 33:] = draw.integers(0, 2**32, (1500, 7), np.uint32)  # 33 of 47 words: 0.7021
    rows = [np.unique(row) for row in one]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    words = np.concatenate(rows)
    bands, sketch = near.band_and_sketch(words, starts[1:])
    clusters = near.Clusters(words, starts, sketch, 0.7)
    clusters.join(bands, np.arange(3000))
    first = clusters.roots()
    assert (first[:1500] == np.arange(1500)).all() and (first[1500:] == np.arange(1500)).sum() >= 1497
    pairs = np.arange(1500)
    exact = [jaccard(rows[n], rows[n + 1500]) for n in pairs]
    assert near.jaccards(words, starts, pairs, pairs + 1500).tolist() == exact
    alike = np.tile(rows[0], 200)  # a template that is filled in 200 times
    ends = np.arange(1, 201) * len(rows[0])
    bands, sketch = near.band_and_sketch(alike, ends)
    clusters = near.Clusters(alike, np.concatenate([[0], ends]), sketch, 0.7)
    clusters.join(bands, np.arange(200))
    assert not clusters.roots().any()


def test_no_words_are_near_nothing():
    bands, sketch = near.band_and_sketch(np.zeros(0, np.uint32), np.zeros(3, np.int64))
    clusters = near.Clusters(np.zeros(0, np.uint32), np.zeros(4, np.int64), sketch, 0.7)
    clusters.join(bands, np.arange(3))
    assert clusters.roots().tolist() == [0, 1, 2] and not short(np.zeros(0, np.uint64)).size


def test_forms_are_named_as_they_appear(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is so."}]},
            {"prompt": "Is it so?", "completion": "It is so indeed."}]  # fmt: skip
    for ordered in (rows, rows[::-1]):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ordered))
        for size in (50, 2**20):
            found = lint(str(tmp_path / "rows.jsonl"), QualitySettings(), processes=1, batch_bytes=size)
            assert found.summary["forms"][0].startswith("messages") == ("messages" in ordered[0])
