"""A text's tokens as the parts of it that they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

BROKEN = "\ufffd"
"""What a tokenizer writes for bytes that are no character by themselves."""


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of every token, a space before it too; of tokens that only together are characters the first has all."""
    pieces = [_piece(tokenizer, token) for token in ids]
    texts: list[str] = []
    for broken, run in groupby(range(len(ids)), key=lambda at: BROKEN in pieces[at]):
        places = list(run)
        if broken:
            texts += [tokenizer.decode([ids[at] for at in places]), *[""] * (len(places) - 1)]
        else:
            texts += [pieces[at] for at in places]
    return texts


def _piece(tokenizer: Any, token: int) -> str:
    text = tokenizer.decode([token])
    # SentencePiece writes a space into the piece, and leaves it out of a text that begins with it.
    marked = str(tokenizer.convert_ids_to_tokens(token)).startswith("▁")
    return f" {text}" if marked and not text.startswith(" ") else text
