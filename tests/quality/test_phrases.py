"""Phrases are found whatever the typography, at word boundaries, and where they really stand."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.tasks.quality.phrases import PhraseFinder, normal_text

FOUND = {
    "I’m sorry, no": "I’m sorry",
    "I‘M  SORRY": "I‘M  SORRY",
    "well, i´m\u00a0sorry.": "i´m\u00a0sorry",
    "I`m\nsorry": "I`m\nsorry",
    "\uff29\uff07\uff4d sorry": "\uff29\uff07\uff4d sorry",  # full width
    "I'm so\u00adr\u200bry": "I'm so\u00adr\u200bry",
    "*I'm sorry*": "I'm sorry",
}


@pytest.mark.parametrize("text", FOUND)
def test_typography_hides_nothing(text):
    (match,) = PhraseFinder(["i'm sorry"]).find(normal_text(text))
    assert text[match.start : match.end] == FOUND[text]


def test_accents_match_composed_and_decomposed():
    finder = PhraseFinder(["café"])
    for text in (unicodedata.normalize(form, "un CAFÉ noir") for form in ("NFC", "NFD")):
        (match,) = finder.find(normal_text(text))
        assert unicodedata.normalize("NFC", text[match.start : match.end]) == "CAFÉ"


@pytest.mark.parametrize(
    ("phrase", "text", "count"),
    [
        ("kill", "skill, killer, kill_9, killed", 0),
        ("kill", "kill KILL (kill) kill's", 4),
        ("kill*", "killer killing skill", 2),
        ("^sure!", "Sure! Sure!", 1),
        ("^sure!", '  "Sure!" she said', 1),
        ("^sure!", "I am sure!", 0),
        ("great question!", "Great question!!", 1),
        ("in conclusion,", "in conclusion , and in conclusion, x", 1),
    ],
)
def test_whole_words_count(phrase, text, count):
    assert len(PhraseFinder([phrase]).find(normal_text(text))) == count


def test_overlapping_phrases_are_all_found():
    finder = PhraseFinder(["steal", "steal money", "money"])
    assert sorted(match.phrase for match in finder.find(normal_text("steal money"))) == [0, 1, 2]


def test_no_phrases_find_nothing():
    assert PhraseFinder([]).find(normal_text("anything")) == []


@given(st.text(alphabet="aB ’'\n\u0301éﬁ\u00adß", max_size=20))
def test_every_character_knows_where_it_came_from(text):
    normal = normal_text(text)
    assert len(normal.origins) == len(normal.text) + 1
    assert list(normal.origins) == sorted(normal.origins)
    assert normal.span(0, len(normal.text))[1] == len(text)


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing_more(text):
    once = normal_text(text).text
    assert normal_text(once).text == normal_text(normal_text(once).text).text


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20))
def test_plain_text_is_only_lowered(text):
    assert normal_text(text).text == text.lower().replace("`", "'")
