"""Phrases found in text whatever its typography: case, width, accents' encoding, curly quotes, spacing."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# What writers and word processors use for the plain sign; NFKC leaves these alone.
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u2032\u00b4\u0060\uff07", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        # Soft hyphens, zero-width signs and the byte order mark split a word without being seen.
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", ""),
    }
)
# Those that stand for one plain sign each, and the blank that does not break; no rule of encodings speaks of them.
_TWINS = {sign: plain for sign, plain in _SIGNS.items() if plain and sign > 127} | {0xA0: " "}
_WHITE = re.compile(r"\s\s+|[^\S ]")
# Of the plain signs the backtick is missing, which some write for an apostrophe.
_CLUSTER = re.compile(r"(?P<plain>[!-_a-~]+(?: [!-_a-~]+)*(?![\u0300-\u036f]))|\s+|\S[\u0300-\u036f]*")


class NormalText:
    """A text as it is searched, and where its characters stand in the original; that is worked out when it is asked."""

    def __init__(self, text: str, original: str) -> None:
        self.text = text
        self._original = original

    @functools.cached_property
    def origins(self) -> Sequence[int]:
        """[len(text) + 1]; position in the original of each character, and of the end."""
        if len(self.text) == len(self._original) and self._original.isascii():
            return range(len(self.text) + 1)  # signs of one character each, and no white space joined
        return _normalised(self._original)[1]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """A span of the normal text as a span of the original."""
        return self.origins[start], self.origins[end]


def normal_text(text: str) -> NormalText:
    """NFKC, case folded, plain quotes and dashes, one space for any white space, nothing invisible."""
    if text.isascii():  # every sign stands for itself, but for the backtick
        return NormalText(_WHITE.sub(" ", text.lower().replace("`", "'")), text)
    return NormalText(_normalised(text)[0], text)


def ascii_twin(text: str) -> str | None:
    """A text of the same length in ASCII, of which `normal_text` makes the same; None where there is none."""
    if not text.isascii():
        text = text.translate(_TWINS)
        if not text.isascii():
            return None
    return None if "\0" in text else text


def _normalised(text: str) -> tuple[str, list[int]]:
    pieces, origins = [], []
    for cluster in _CLUSTER.finditer(text):
        if cluster["plain"]:
            pieces.append(cluster.group().lower())
            origins.extend(range(cluster.start(), cluster.end()))
            continue
        # Signs first: NFKC would turn an acute accent that stands for an apostrophe into a space and a mark.
        piece = cluster.group().translate(_SIGNS)
        piece = " " if piece.isspace() else unicodedata.normalize("NFKC", piece).casefold().translate(_SIGNS)
        pieces.append(piece)
        origins.extend([cluster.start()] * len(piece))
    return "".join(pieces), [*origins, len(text)]


@dataclass(frozen=True)
class Match:
    """A phrase found in a text."""

    phrase: int  # position in the finder's list
    start: int  # in characters of the original text
    end: int


class PhraseFinder:
    """Finds whole words and phrases in one pass (Aho-Corasick).

    A phrase that begins with `^` counts at the text's beginning only; one that ends in `*` also counts as the
    beginning of a longer word.
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        from ahocorasick_rs import AhoCorasick

        self._anchored = [phrase.startswith("^") for phrase in phrases]
        self._open = [phrase.endswith("*") for phrase in phrases]
        self._automaton: Any = AhoCorasick(
            [normal_text(phrase.removeprefix("^").removesuffix("*")).text for phrase in phrases]
        )

    def find(self, text: NormalText) -> list[Match]:
        """Every match, overlapping ones too, in the order of their ends."""
        found = []
        # Once, not for each match: a text of one phrase again and again would take the square of its length.
        begins = len(text.text) - len(text.text.lstrip(" \"'*#"))
        for phrase, start, end in self._automaton.find_matches_as_indexes(text.text, overlapping=True):
            if not (self._anchored[phrase] and start > begins) and self._stands_alone(phrase, text.text, start, end):
                found.append(Match(phrase, *text.span(start, end)))
        return found

    def _stands_alone(self, phrase: int, text: str, start: int, end: int) -> bool:
        inside_before = start > 0 and _is_word(text[start - 1]) and _is_word(text[start])
        inside_after = end < len(text) and _is_word(text[end]) and _is_word(text[end - 1])
        return not inside_before and (self._open[phrase] or not inside_after)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
