"""The text of every token of an answer, so that the texts one after another are the text of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNFINISHED = "\ufffd"
WINDOW = 8
"""Tokens before one that its decoding may depend on: a space that a first token drops, bytes of one character."""


def token_texts(backend: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Text by token; a character of several tokens belongs to its last one, a special token has none."""
    texts: list[str] = []
    start = done = 0  # tokens [start, done) have their texts
    for end in range(1, len(ids) + 1):
        before = backend.decode(list(ids[start:done]), skip_special_tokens=True)
        now = backend.decode(list(ids[start:end]), skip_special_tokens=True)
        waits = now.endswith(UNFINISHED) and end < len(ids) and end - done < WINDOW
        texts.append("" if waits else now[len(before) :])
        if not waits:
            start, done = max(start, done - WINDOW), end
    return texts
