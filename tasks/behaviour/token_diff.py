"""Where two answers part: spans of equal, removed and inserted tokens."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["equal", "removed", "inserted"]


@dataclass(frozen=True)
class Span:
    """Tokens one after another that are in both answers, in the first alone, or in the second alone."""

    kind: Kind
    first: tuple[int, int]  # positions [from, to) in the first answer
    second: tuple[int, int]


@dataclass(frozen=True)
class TokenDiff:
    spans: tuple[Span, ...]
    first_difference: int | None  # position of the first token that is another, or that only one answer has
    equal_share: float  # tokens in both, of those of the longer answer

    @property
    def equal(self) -> bool:
        return self.first_difference is None


def token_diff(first: Sequence[int], second: Sequence[int]) -> TokenDiff:
    """The difference of two answers as token ids."""
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    spans: list[Span] = []
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            spans.append(Span("equal", (a, b), (c, d)))
            continue
        if b > a:
            spans.append(Span("removed", (a, b), (c, c)))
        if d > c:
            spans.append(Span("inserted", (b, b), (c, d)))
    kept = sum(span.first[1] - span.first[0] for span in spans if span.kind == "equal")
    longest = max(len(first), len(second))
    return TokenDiff(tuple(spans), _parting(first, second), kept / longest if longest else 1.0)


def _parting(first: Sequence[int], second: Sequence[int]) -> int | None:
    shared = next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    if shared is None and len(first) != len(second):
        return min(len(first), len(second))
    return shared
