"""What a feature fires on: its contexts, in two halves of the texts, as words that people read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

LEFT, RIGHT = 8, 3
"""Tokens shown on either side: a causal model's feature depends on what stands before it, and what follows explains."""
LINE_BREAK, SPACE, NUMBER = "line break", "space", "number"


@dataclass(frozen=True)
class Contexts:
    """Places of a feature, strongest first."""

    shown: np.ndarray[Any, Any]  # token indices that a name is made from
    weights: np.ndarray[Any, Any]  # their activations
    unlike: np.ndarray[Any, Any]  # tokens of the same texts around which it does not fire
    tested: np.ndarray[Any, Any]  # token indices in the other texts, none with a context that was shown
    silent: np.ndarray[Any, Any]  # tokens of those texts around which it does not fire


class Evidence:
    """The tokens of all texts, and where every feature fires on them."""

    def __init__(self, tokens: Any, firings: Any, tokenizer: Any) -> None:
        self.ids = tokens["id"].to_numpy()
        self.text = tokens["text"].to_numpy()
        self.position = tokens["position"].to_numpy()
        self.tokenizer = tokenizer
        self._start = np.searchsorted(self.text, self.text)
        self._end = np.searchsorted(self.text, self.text, side="right")
        feature = firings["feature"].to_numpy()
        order = np.argsort(feature, kind="stable")
        self._feature, self._token = feature[order], firings["token"].to_numpy()[order]
        self._activation = firings["activation"].to_numpy()[order]
        drawn = np.random.default_rng(0).permutation(np.flatnonzero(self.position > 0))
        self._drawn = [drawn[self.text[drawn] % 2 == half] for half in (0, 1)]
        self._sampled = drawn[:2000]

    def firings(self, feature: int) -> tuple[Any, Any]:
        """(token indices, activations) of a feature, the strongest first."""
        first, last = np.searchsorted(self._feature, [feature, feature + 1])
        tokens, activations = self._token[first:last], self._activation[first:last]
        order = np.argsort(-activations, kind="stable")
        return tokens[order], activations[order]

    def contexts(self, feature: int, most: int) -> Contexts:
        """At most `most` of each kind; texts of even number are shown, the others kept for the test."""
        tokens, activations = self.firings(feature)
        even = self.text[tokens] % 2 == 0
        shown, weights = tokens[even][:most], activations[even][:most]
        seen = {self._content(token) for token in shown}
        tested = self._unseen(tokens[~even], seen, most)
        fired = np.zeros(len(self.ids) + 1, dtype=np.int64)
        fired[tokens + 1] = 1
        unlike, silent = (self._silent(fired.cumsum(), drawn[: 4 * most], most) for drawn in self._drawn)
        return Contexts(shown, weights, unlike, tested, silent)

    def _silent(self, before: Any, drawn: Any, most: int) -> Any:
        """Tokens around which nothing fires; of a feature that fires nearly everywhere those on which it does not."""
        first, last = self.windows(drawn)
        around = drawn[before[last] == before[first]]
        itself = drawn[before[drawn + 1] == before[drawn]]
        return (around if len(around) >= most else itself)[:most]

    def _unseen(self, tokens: Any, seen: set[bytes], most: int) -> Any:
        kept: list[int] = []
        for token in tokens:
            content = self._content(token)
            if content not in seen:
                seen.add(content)
                kept.append(token)
            if len(kept) == most:
                break
        return np.array(kept, dtype=int)

    def window(self, token: int) -> tuple[int, int]:
        """First and last token index around a token, the second excluded; a text's first token is left out."""
        return max(self._start[token] + 1, token - LEFT), min(self._end[token], token + RIGHT + 1)

    def windows(self, tokens: Any) -> tuple[Any, Any]:
        """`window` of many tokens."""
        first = np.maximum(self._start[tokens] + 1, tokens - LEFT)
        return first, np.minimum(self._end[tokens], tokens + RIGHT + 1)

    def _content(self, token: int) -> bytes:
        return self.ids[slice(*self.window(token))].tobytes()

    @cached_property
    def _pieces(self) -> dict[int, str]:
        return {number: self.tokenizer.decode([number]) for number in set(self.ids.tolist())}

    @cached_property
    def _special(self) -> set[int]:
        return set(self.tokenizer.all_special_ids)

    @cached_property
    def words(self) -> Any:
        """Per token the word that it is part of, in small letters; marks, spaces and numbers by their name."""
        found: list[str] = [""] * len(self.ids)
        start = 0
        for end in range(1, len(self.ids) + 1):
            if end < len(self.ids) and self.text[end] == self.text[start] and self._joins(end):
                continue
            word = named("".join(self._pieces[self.ids[at]] for at in range(start, end)))
            found[start:end] = [word] * (end - start)
            start = end
        return np.array(found, dtype=object)

    def _joins(self, at: int) -> bool:
        """Whether this token goes on with the word before it."""
        before, piece = self._pieces[self.ids[at - 1]], self._pieces[self.ids[at]]
        markers = self.ids[at] in self._special or self.ids[at - 1] in self._special
        return not markers and piece[:1].isalnum() and before[-1:].isalnum()

    @cached_property
    def common(self) -> dict[str, float]:
        """{word: share of contexts with it}, of a sample of all contexts."""
        counts: dict[str, int] = {}
        for token in self._sampled:
            for word in {*self.words[slice(*self.window(token))]}:
                counts[word] = counts.get(word, 0) + 1
        return {word: (count + 1) / (len(self._sampled) + 1) for word, count in counts.items()}

    def rarity(self, word: str) -> float:
        """-log of the share of contexts with the word: its weight in a test, as inverse document frequency is."""
        return -float(np.log(self.common.get(word, 1 / (len(self._sampled) + 1))))

    def is_marker(self, token: int) -> bool:
        """Whether it is one of the tokenizer's special tokens, which a chat template puts into every row."""
        return int(self.ids[token]) in self._special


def named(piece: str) -> str:
    """A word as it stands in a name."""
    text = piece.strip().lower()
    if not text:
        return LINE_BREAK if "\n" in piece else SPACE
    return NUMBER if text.isdecimal() else text
