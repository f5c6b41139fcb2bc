"""What a feature fires on: its contexts, in two halves of the texts, as words that people read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

LEFT, RIGHT = 8, 3
"""Tokens shown on either side: a causal model's feature depends on what stands before it, and what follows explains."""
EARLY = 12
"""Tokens at a text's start that stand early in it."""
LINE_BREAK, SPACE, NUMBER = "line break", "space", "number"


@dataclass(frozen=True)
class Contexts:
    """Places of a feature, strongest first."""

    shown: np.ndarray[Any, Any]  # token indices that a name is made from
    weights: np.ndarray[Any, Any]  # their activations
    further: np.ndarray[Any, Any]  # these and weaker ones in the same texts, which a name is chosen by
    unlike: np.ndarray[Any, Any]  # tokens of the same texts around which it does not fire
    tested: np.ndarray[Any, Any]  # token indices in the other texts, none with a context that was shown
    silent: np.ndarray[Any, Any]  # tokens of those texts around which it does not fire


class Evidence:
    """The tokens of all texts, and where every feature fires on them."""

    NOUNS: ClassVar[frozenset[str]] = frozenset({"capitalised words", "punctuation", "chat marks"})

    def __init__(self, tokens: Any, firings: Any, tokenizer: Any) -> None:
        self.ids = tokens["id"].to_numpy()
        self.text = tokens["text"].to_numpy()
        self.position = tokens["position"].to_numpy()
        self.label = np.asarray(tokens["label"].to_numpy(), dtype=bool)
        self.tokenizer = tokenizer
        self._start = np.searchsorted(self.text, self.text)
        self._end = np.searchsorted(self.text, self.text, side="right")
        feature = firings["feature"].to_numpy()
        order = np.argsort(feature, kind="stable")
        self._feature, self._token = feature[order], firings["token"].to_numpy()[order]
        self._activation = firings["activation"].to_numpy()[order]
        drawn = np.random.default_rng(0).permutation(np.flatnonzero(self.position > 0))
        self._drawn = [drawn[self.text[drawn] % 2 == half] for half in (0, 1)]
        self.sampled = drawn[:2000]

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
        seen: set[bytes] = set()
        kept = self._unseen(tokens[even], seen, 2 * most)
        further, weights = tokens[even][kept], activations[even][kept]
        tested = tokens[~even][self._unseen(tokens[~even], seen, most)]
        fired = np.zeros(len(self.ids) + 1, dtype=np.int64)
        fired[tokens + 1] = 1
        unlike, silent = (
            self._silent(fired.cumsum(), drawn[: 4 * count], count)
            for drawn, count in zip(self._drawn, (3 * most, most), strict=True)
        )
        return Contexts(further[:most], weights[:most], further, unlike, tested, silent)

    def _silent(self, before: Any, drawn: Any, most: int) -> Any:
        """Tokens around which nothing fires; of a feature that fires nearly everywhere those on which it does not."""
        first, last = self.windows(drawn)
        around = drawn[before[last] == before[first]]
        itself = drawn[before[drawn + 1] == before[drawn]]
        return (around if len(around) >= most else itself)[:most]

    def _unseen(self, tokens: Any, seen: set[bytes], most: int) -> Any:
        """Places of the first tokens whose contexts are not among those `seen`, which they join: a template repeats
        the same one in every row."""
        kept: list[int] = []
        for place, token in enumerate(tokens):
            content = self._content(token)
            if content not in seen:
                seen.add(content)
                kept.append(place)
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

    def marked(self, token: int, left: int, right: int) -> str:
        """The text around a token, which stands between << and >>; a text's first token and chat marks are left out."""
        pieces = [
            (at, self._pieces[self.ids[at]])
            for at in range(max(self._start[token] + 1, token - left), min(self._end[token], token + right + 1))
            if at == token or not self.is_marker(at)
        ]
        return " ".join("".join(f"<<{piece}>>" if at == token else piece for at, piece in pieces).split())

    def first(self, tokens: Any) -> Any:
        """The first token of each one's text."""
        return self._start[tokens]

    def last(self, tokens: Any) -> Any:
        """The last token of each one's text."""
        return self._end[tokens] - 1

    def beside(self, token: int, step: int) -> str | None:
        """The word of the token before (-1) or behind (1); None where the text begins or ends."""
        at = token + step
        return self.words[at] if self._start[token] <= at < self._end[token] else None

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
        for token in self.sampled:
            for word in {*self.words[slice(*self.window(token))]}:
                counts[word] = counts.get(word, 0) + 1
        return {word: (count + 1) / (len(self.sampled) + 1) for word, count in counts.items()}

    @cached_property
    def common_before(self) -> dict[str, float]:
        """{word: share of a sample of all tokens that it stands before}."""
        return self._common_beside(-1)

    @cached_property
    def common_behind(self) -> dict[str, float]:
        """{word: share of a sample of all tokens that it stands behind}."""
        return self._common_beside(1)

    def _common_beside(self, step: int) -> dict[str, float]:
        counts = Counter(self.beside(token, step) for token in self.sampled)
        return {word: count / len(self.sampled) for word, count in counts.items() if word is not None}

    @cached_property
    def kinds(self) -> dict[str, Any]:
        """{kind: whether each token is of it}: those in `NOUNS` say what a token is, the others where it stands."""
        pieces = [self._pieces[number] for number in self.ids]
        stripped = [piece.strip() for piece in pieces]
        marks = np.isin(self.ids, list(self._special))
        within = np.arange(len(self.ids)) > self._start
        before = np.array(["", *pieces[:-1]], dtype=object)
        goes_on = [at > 0 and bool(within[at]) and self._joins(at) for at in range(len(self.ids))]
        found = {
            "capitalised words": [text[:1].isupper() for text in stripped],
            "punctuation": [bool(text) and not any(map(str.isalnum, text)) for text in stripped] & ~marks,
            "chat marks": marks,
            "inside a word": goes_on,
            "at a line's start": [ok and "\n" in piece for ok, piece in zip(within, before, strict=True)],
            "at a sentence's start": [
                ok and piece.strip()[-1:] in {".", "!", "?"} for ok, piece in zip(within, before, strict=True)
            ],
            "early in a text": self.position < EARLY,
            "in an answer": self.label,
            "in a prompt": ~self.label,
        }
        return {name: np.array(each, dtype=bool) for name, each in found.items()}

    @cached_property
    def kind_share(self) -> dict[str, float]:
        """{kind: share of a sample of all tokens that are of it}."""
        return {name: float(of[self.sampled].mean()) for name, of in self.kinds.items()}

    def rarity(self, word: str) -> float:
        """-log of the share of contexts with the word: its weight in a test, as inverse document frequency is."""
        return -float(np.log(self.common.get(word, 1 / (len(self.sampled) + 1))))

    def is_marker(self, token: int) -> bool:
        """Whether it is one of the tokenizer's special tokens, which a chat template puts into every row."""
        return int(self.ids[token]) in self._special


def named(piece: str) -> str:
    """A word as it stands in a name."""
    text = piece.strip().lower()
    if not text:
        return LINE_BREAK if "\n" in piece else SPACE
    return NUMBER if text.isdecimal() else text
