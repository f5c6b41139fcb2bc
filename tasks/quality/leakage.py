"""Rows that stand, or nearly stand, in a file that they should not: held-out rows, benchmarks.

Three ways, the surest first: the same text once normalised, thirteen words in a row in common, and nearly the same
words (MinHash finds candidates, their Jaccard similarity is then exact).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretune.storage.errors import BadInput
from foretune.storage.row_batches import Unread, parsed, row_batches
from foretune.tasks.quality.diversity import all_words, band_keys, signatures, word_hashes
from foretune.tasks.quality.phrases import normal_text
from foretune.tasks.quality.rows import Texts
from foretune.tasks.samples.forms import canonical_rows, shown_texts

GRAM = 13
"""Words in a row in common, as GPT-3 and its successors counted contamination."""
LEAST_WORDS = 8  # of a text that is compared at all: "Who are you?" is in every file
FUZZY = 0.6
"""Jaccard similarity of the words: rewordings reach it, other questions of the same kind do not."""


@dataclass
class LeakIndex:
    """The texts of one file, as they are looked for."""

    rule: str
    name: str
    exact: dict[bytes, int] = field(default_factory=dict)  # digest -> row
    grams: dict[bytes, int] = field(default_factory=dict)
    bands: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # (band, key) -> texts
    words: list[frozenset[str]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def add(self, row: int, texts: Sequence[Sequence[str]]) -> None:
        """The texts of one row, as words."""
        for words in texts:
            if len(words) < LEAST_WORDS:
                continue
            self.exact.setdefault(_key(words), row)
            for gram in _grams(words):
                self.grams.setdefault(gram, row)
            for key in _band_keys(set(words)):
                self.bands.setdefault(key, []).append(len(self.words))
            self.words.append(frozenset(words))
            self.rows.append(row)

    def of(self, texts: Texts) -> str | None:
        """How a row stands in the file, the surest way first; None where it does not."""
        found = self.found([texts.prompt_words, texts.completion_words, [*texts.prompt_words, *texts.completion_words]])
        return None if found is None else f"{found[0]}, row {found[1]} of {self.name}"

    def found(self, texts: Sequence[Sequence[str]]) -> tuple[str, int] | None:
        """(way, row of the file) of these texts."""
        texts = [words for words in texts if len(words) >= LEAST_WORDS]
        for words in texts:
            if (row := self.exact.get(_key(words))) is not None:
                return "exact", row
        for words in texts[-1:]:  # the last is prompt and completion together
            for gram in _grams(words):
                if (row := self.grams.get(gram)) is not None:
                    return "13 words in a row", row
        for words in texts:
            if (row := self._fuzzy(frozenset(words))) is not None:
                return "nearly the same words", row
        return None

    def _fuzzy(self, words: frozenset[str]) -> int | None:
        seen = {text for key in _band_keys(words) for text in self.bands.get(key, ())}
        for text in sorted(seen):
            other = self.words[text]
            if len(words & other) >= FUZZY * len(words | other):
                return self.rows[text]
        return None


def leak_index(rule: str, uri: str) -> LeakIndex:
    """The texts of a file: prompts, and prompts with their answers; of a row of no known form every text in it."""
    index = LeakIndex(rule, uri.rsplit("/", 1)[-1])
    number = 0
    for batch in row_batches(uri):
        for row in parsed(batch)[0]:
            if not isinstance(row, Unread):
                index.add(number, [all_words(normal_text(text).text) for text in _texts(row)])
            number += 1
    if not index.words:
        raise BadInput(f"{uri}: no row has a text of {LEAST_WORDS} words, so nothing of it can be looked for")
    return index


def _texts(row: dict[str, Any]) -> list[str]:
    try:
        prompt, completion, _ = shown_texts(canonical_rows([row])[0])
    except BadInput:
        return [value for value in row.values() if isinstance(value, str)]
    return [prompt, f"{prompt} {completion}"] if prompt.strip() else [completion]


def _key(words: Sequence[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()


def _grams(words: Sequence[str]) -> Iterable[bytes]:
    return (_key(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1))


def _band_keys(words: Iterable[str]) -> list[tuple[int, int]]:
    signed = np.array(signatures(word_hashes([sorted(words)])), dtype=np.uint32)
    return list(enumerate(band_keys(signed)[0].tolist()))
