"""The words of many texts as arrays: hashed, made different within a text, and counted, without an object a word.

A word's hash depends on its bytes alone: a polynomial whose prefix sums give every word of a buffer at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MULTIPLIER = 0x9E3779B97F4A7C15 | 1
_KEPT = 43  # bits of a hash in a sort key, whose others say which text: batches have fewer than 2**20
_CHARACTERS = np.random.Generator(np.random.PCG64(20)).integers(1, 2**63, 256, np.uint64)
WORD_BYTES = np.zeros(256, bool)
"""Bytes that belong to words: those of ASCII words, and all of other characters."""
WORD_BYTES[[*range(48, 58), *range(65, 91), 95, *range(97, 123), *range(128, 256)]] = True
NON_SPACE = np.ones(256, bool)
"""Words that are told apart already, with a blank between them."""
NON_SPACE[[0, 32]] = False


@dataclass(frozen=True)
class WordArrays:
    """The different words of texts, text by text; hashes are sorted within each."""

    text: np.ndarray  # int64: which text
    hashes: np.ndarray  # uint64 of 43 bits
    total: np.ndarray  # [texts] words, repeated ones too
    different: np.ndarray  # [texts]


def words_of(buffer: np.ndarray, belongs: np.ndarray) -> WordArrays:
    """`buffer` begins by a zero byte and has another after every text."""
    inside = belongs[buffer]
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, ends = edges[0::2], edges[1::2]
    bounds = np.flatnonzero(buffer == 0)
    texts = len(bounds) - 1
    text = np.repeat(np.arange(texts), np.diff(np.searchsorted(starts, bounds)))
    power, inverse = _powers(1 << max(len(buffer) - 1, 1).bit_length())
    sums = np.cumsum(_CHARACTERS[buffer] * power[: len(buffer)])
    hashes = _mixed((sums[ends - 1] - sums[starts - 1]) * inverse[starts])
    keys = (text.astype(np.uint64) << np.uint64(_KEPT)) | (hashes >> np.uint64(64 - _KEPT))
    keys = _different(keys)
    of = (keys >> np.uint64(_KEPT)).astype(np.int64)
    return WordArrays(
        of, keys & np.uint64(2**_KEPT - 1), np.bincount(text, minlength=texts), np.bincount(of, minlength=texts)
    )


def joined(words: WordArrays, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different words of each row, whose texts are numbered `row`: (row of each word, its hash), sorted."""
    keys = _different((row[words.text].astype(np.uint64) << np.uint64(_KEPT)) | words.hashes)
    return (keys >> np.uint64(_KEPT)).astype(np.int64), keys & np.uint64(2**_KEPT - 1)


def hash_of(words: Sequence[str]) -> np.ndarray:
    """The hashes of single words, in their order."""
    return words_of(buffer_of(words), NON_SPACE).hashes


def buffer_of(texts: Sequence[str]) -> np.ndarray:
    """Texts that hold no zero character, as bytes."""
    return np.frombuffer(("\0" + "\0".join(texts) + "\0").encode("utf-8", "surrogatepass"), np.uint8)


def short(hashes: np.ndarray) -> np.ndarray:
    """32 bits of every hash."""
    return (hashes >> np.uint64(_KEPT - 32)).astype(np.uint32)


def _different(keys: np.ndarray) -> np.ndarray:
    keys = np.sort(keys)
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys


def _mixed(hashes: np.ndarray) -> np.ndarray:
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    return hashes ^ (hashes >> np.uint64(29))


@functools.lru_cache(2)
def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the multiplier, and of its inverse modulo 2**64."""
    inverse = pow(_MULTIPLIER, -1, 2**64)
    made = []
    for factor in (_MULTIPLIER, inverse):
        factors = np.full(length, factor, np.uint64)
        factors[0] = 1
        made.append(np.cumprod(factors))
    return made[0], made[1]
