"""Many texts as a page shows them, and a text's tokens: what is a secret only across several of them is gone too."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from foretune.storage.display import shown, visible
from foretune.storage.redaction import MARK, redacted


def shown_tokens(tokens: Sequence[str]) -> list[str]:
    """As many tokens, each visible; of those that are part of a secret the first is `***`, the others are empty."""
    text = "".join(tokens)
    safe = redacted(text)
    if safe == text:
        return [visible(token) for token in tokens]
    ends = list(itertools.accumulate(map(len, tokens)))
    hidden = _hidden(text, safe)
    shown: list[str] = []
    within = False
    for token, end in zip(tokens, ends, strict=True):
        touched = any(start < end and end - len(token) < stop for start, stop in hidden)
        shown.append(visible(token) if not touched else "" if within else MARK)
        within = touched
    # Where a secret began or ended otherwise than it seemed, no token is worth it.
    return shown if redacted("".join(shown)) == "".join(shown) else [MARK, *[""] * (len(tokens) - 1)]


def all_shown(texts: Sequence[str]) -> list[str]:
    """`shown` of each; what no secret is in is looked through once for all, since each look asks the environment."""
    together = "\n".join(texts)
    each = visible if redacted(together) == together else shown
    return [each(text) for text in texts]


def _hidden(text: str, safe: str) -> list[tuple[int, int]]:
    """From where to where `text` holds what stands as a mark in `safe`."""
    spans, at = [], 0
    parts = safe.split(MARK)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        found = len(text) - len(part) if last else text.find(part, at) if part else at
        if number:
            spans.append((at, max(found, at)))
        at = max(found, at) + len(part)
    return spans
