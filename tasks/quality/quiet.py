"""Which rows of a batch no rule can have anything to say of: they are cleared together, without a look at each.

What is not cleared is read by `RowRules`, whose word counts: here a row is only ever held too often. A row is two
texts, prompt and completion, one after the other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.tasks.quality.languages import languages_of
from foretune.tasks.quality.patterns import repeated
from foretune.tasks.quality.phrases import normal_text
from foretune.tasks.quality.rows import REPEATED
from foretune.tasks.quality.word_arrays import WORD_BYTES, WordArrays

if TYPE_CHECKING:
    from foretune.tasks.quality.ascii_texts import AsciiTexts
    from foretune.tasks.quality.rows import RowRules

_PARTS = ("prompt", "completion")
_CONTROL = np.zeros(256, bool)
_CONTROL[[*range(9), 11, *range(14, 32), 127]] = True
_CONTROL[0] = False  # stands between texts
_DIGIT = np.zeros(256, bool)
_DIGIT[48:58] = True
_CAPITAL = np.zeros(256, bool)
_CAPITAL[65:91] = True
_SPACE = np.zeros(256, bool)
_SPACE[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True
_BETWEEN = np.zeros(256, bool)
_BETWEEN[list(b" .()/-")] = True
_BEGINNING = re.compile(rb"[ \"'*#]*")
_ENOUGH = 1.0


class QuietRows:
    """Clears rows by the rules that are on; its automata are built once."""

    def __init__(self, rules: RowRules) -> None:
        from ahocorasick_rs import BytesAhoCorasick, Implementation

        self.rules = rules
        phrases = rules.listed_phrases()
        normal = [normal_text(phrase.removeprefix("^").removesuffix("*")).text for phrase in phrases]
        known = [number for number, text in enumerate(normal) if text.isascii()]
        self._anchored = np.array([phrases[number].startswith("^") for number in known], bool)
        self._open = np.array([phrases[number].endswith("*") for number in known], bool)
        # How far a phrase goes towards a finding, in a prompt and in a completion; one is enough.
        self._weight = np.array([[rules.phrase_weight(n, part) for part in _PARTS] for n in known]).reshape(-1, 2)
        self._phrases: Any = BytesAhoCorasick([normal[n].encode() for n in known], implementation=Implementation.DFA)
        signs = {sign: parts for sign, parts in rules.texts.signs().items() if sign.isascii()}
        self._sign_parts = np.array([[part in parts for part in _PARTS] for parts in signs.values()]).reshape(-1, 2)
        encoded = [sign.encode() for sign in signs]
        self._signs: Any = BytesAhoCorasick(encoded, implementation=Implementation.DFA) if encoded else None

    def noisy(self, texts: AsciiTexts, words: WordArrays) -> tuple[np.ndarray, np.ndarray]:
        """(rows that a rule may have something to say of, [rows] language of each completion)."""
        held = np.zeros(len(texts), bool)  # by text
        if not len(texts):
            return held[::2], np.zeros(0, np.uint8)
        self._by_phrases(texts, held)
        self._by_signs(texts, held)
        self._by_digits(texts, held)
        held[texts.holding(np.flatnonzero(_CONTROL[texts.buffer]))] = True
        for text in range(len(texts)) if self.rules.texts.always else ():
            held[text] |= self.rules.texts.own_found(_PARTS[text % 2], texts.texts[text])
        held = held[::2] | held[1::2]
        self._by_form(texts, words, held)
        languages = languages_of(words)
        asked, answered = languages[::2], languages[1::2]
        held |= (asked > 0) & (answered > 0) & (asked != answered)
        return held, answered

    def _by_phrases(self, texts: AsciiTexts, held: np.ndarray) -> None:
        found = np.array(self._phrases.find_matches_as_indexes(texts.normal, overlapping=True), np.int64)
        if not len(found):
            return
        phrase, start, end = found.T
        buffer = texts.normal_buffer
        inside = WORD_BYTES[buffer[start - 1]] & WORD_BYTES[buffer[start]]
        inside |= WORD_BYTES[buffer[end]] & WORD_BYTES[buffer[end - 1]] & ~self._open[phrase]
        phrase, start = phrase[~inside], start[~inside]
        text = np.searchsorted(texts.normal_bounds, start, "right") - 1
        weight = self._weight[phrase, text % 2]
        for at in np.flatnonzero(self._anchored[phrase] & (weight > 0)).tolist():
            beginning = _BEGINNING.match(texts.normal, int(texts.normal_bounds[text[at]]) + 1)
            weight[at] *= beginning is not None and start[at] <= beginning.end()
        held |= np.bincount(text, weight, minlength=len(texts)) >= _ENOUGH - 1e-9

    def _by_signs(self, texts: AsciiTexts, held: np.ndarray) -> None:
        if self._signs is None:
            return
        found = np.array(self._signs.find_matches_as_indexes(texts.raw, overlapping=True), np.int64)
        if len(found):
            text = np.searchsorted(texts.bounds, found[:, 1], "right") - 1
            held[text[self._sign_parts[found[:, 0], text % 2]]] = True

    def _by_digits(self, texts: AsciiTexts, held: np.ndarray) -> None:
        if not self.rules.texts.on_digits:
            return
        digit = _DIGIT[texts.buffer]
        # Seven digits with at most two signs of numbers between each, as `patterns.holds_digits` looks for.
        at = np.flatnonzero(digit)
        others = np.cumsum(~(digit | _BETWEEN[texts.buffer]), dtype=np.int32)[at]
        near = (np.diff(at) <= 3) & (np.diff(others) == 0)
        run = np.cumsum(near, dtype=np.int32)
        six = np.flatnonzero(run[5:] - np.concatenate([[0], run[:-6]]) == 6) if len(run) > 5 else np.zeros(0, np.int64)
        held[texts.holding(at[six])] = True
        capital = _CAPITAL[texts.buffer]
        held[texts.holding(np.flatnonzero(capital[:-3] & capital[1:-2] & digit[2:-1] & digit[3:]))] = True

    def _by_form(self, texts: AsciiTexts, words: WordArrays, held: np.ndarray) -> None:
        """White space around, fences, few words, one text again and again, the prompt's beginning."""
        total, different = words.total[1::2], words.different[1::2]
        held |= total < max(self.rules.settings.min_completion_words, 1)
        starts, ends = texts.bounds[1:-1:2] + 1, texts.bounds[2::2]
        some = ends > starts
        held |= some & (_SPACE[texts.buffer[starts]] | _SPACE[texts.buffer[ends - 1]])
        repetitive = (8 * different <= 5 * total) & (ends - starts >= 40)
        for row in np.flatnonzero(repetitive & ~held).tolist():
            held[row] = repeated(texts.texts[2 * row + 1]) is not None
        at = texts.raw.find(b"```")
        while at >= 0:
            text = int(np.searchsorted(texts.bounds, at, "right")) - 1
            held[text // 2] = True
            at = texts.raw.find(b"```", int(texts.bounds[text + 1]))
        bounds, normal = texts.normal_bounds, texts.normal
        sizes = np.diff(bounds) - 1
        for row in np.flatnonzero((sizes[::2] >= REPEATED) & (sizes[1::2] >= REPEATED) & ~held).tolist():
            start, middle, end = bounds[2 * row : 2 * row + 3].tolist()
            if normal.find(normal[start + 1 : start + 1 + REPEATED], middle + 1, end) >= 0:
                held[row] = True
