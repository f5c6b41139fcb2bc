"""A text made against the rules costs what its length costs, not the square of it."""

from __future__ import annotations

import time

import pytest

from foretune.tasks.quality.diversity import word_count, words
from foretune.tasks.quality.phrases import PhraseFinder, normal_text
from foretune.tasks.quality.rules import REFUSALS
from foretune.tasks.quality.settings import QualitySettings

pytestmark = pytest.mark.slow

HOSTILE = {
    "one anchored phrase": "sure, ",
    "a refusal": "i cannot ",
    "a keyword": "bomb ",
    "one word": "a",
    "spaces": " ",
    "two spaces a word": "a  ",
    "a mark on every word": "a a\u0301 ",
    "marks alone": "\u0301",
    "soft hyphens": "a\u00ad",
    "ligatures that grow eighteen times": "\ufdfa",
    "no spaces": "\u4e00",
    "quotes": "'\"*#",
}


def seconds(text: str) -> float:
    settings = QualitySettings()
    finders = [
        PhraseFinder([keyword.phrase for keyword in settings.keywords()]),
        PhraseFinder([phrase.phrase for phrase in settings.stock_phrases()]),
        PhraseFinder(REFUSALS),
    ]
    started = time.process_time()
    normal = normal_text(text)
    for finder in finders:
        finder.find(normal)
    words(normal.text)
    word_count(normal.text)
    return time.process_time() - started


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_takes_seconds(name: str):
    assert seconds((HOSTILE[name] * 2**20)[: 2**20]) < 10
