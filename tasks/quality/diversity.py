"""How alike the rows are: mean pairwise overlap, exact in linear time, and clusters of near-duplicates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Scripts that are written without spaces: every character is a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
_PLAIN_WORD = re.compile(r"\w+")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

# 32 bands of 4 of 128 hashes: a pair of Jaccard similarity 0.7 shares a band with probability 0.9999, one of
# 0.3 with 0.23; what shares a band is then compared exactly.
_HASHES, _BANDS = 128, 32
# A band of thousands of rows is compared with this many different ones among them, not with all.
_COMPARED = 8


def words(normal: str) -> list[str]:
    """The different words of a normalised text, sorted."""
    return sorted(set(all_words(normal)))


def all_words(normal: str) -> list[str]:
    """The words of a normalised text in their order, repeated ones too."""
    return (_PLAIN_WORD if normal.isascii() else _WORD).findall(normal)


def word_count(normal: str) -> int:
    """Words of a normalised text, repeated ones too."""
    return len(all_words(normal))


def word_hashes(word_sets: Sequence[Sequence[str]]) -> list[list[int]]:
    """Every word as 64 bits, the same on every machine."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] - of its compiled part

    return RMinHash.hash_token_sets(word_sets)


def signatures(hashed: Sequence[Sequence[int]]) -> list[list[int]]:
    """MinHash signature of every set, [128] of 32 bits; it depends on the set alone."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] - of its compiled part

    return RMinHash.digest_matrix_from_token_hash_sets(hashed, _HASHES, 42).to_rows() if len(hashed) else []


@dataclass(frozen=True)
class Overlap:
    """Mean of |A n B| / min(|A|, |B|) over all pairs of non-empty sets; None for fewer than two."""

    mean: float | None
    pairs: int


def mean_overlap(sets: Sequence[np.ndarray]) -> Overlap:
    """Exact and linear in the number of items.

    By decreasing size, every set is the smaller one of its pairs with those before it, so its pairs add up to
    (sum over its items of how many earlier sets hold the item) / size. Sums are integers until the last step:
    the order of the rows cannot move the result.
    """
    sets = sorted((items for items in sets if len(items)), key=len, reverse=True)
    pairs = len(sets) * (len(sets) - 1) // 2
    if not pairs:
        return Overlap(None, 0)
    sizes = np.array([len(items) for items in sets])
    items = np.concatenate(sets)
    if items.dtype.itemsize > 4:
        items = np.unique(items, return_inverse=True)[1]
    # By item, then by set: how many hold it before is the place among its own.
    keys = np.sort((items.astype(np.uint64) << np.uint64(32)) | np.repeat(np.arange(len(sets), dtype=np.uint64), sizes))
    item = keys >> np.uint64(32)
    first = np.flatnonzero(np.concatenate([[True], item[1:] != item[:-1]]))
    seen = np.arange(len(keys)) - np.repeat(first, np.diff(first, append=len(keys)))
    size = sizes[(keys & np.uint64(2**32 - 1)).astype(np.int64)]
    shared = np.bincount(size, seen)  # whole numbers below 2**53: exact
    return Overlap(sum(int(shared[size]) / size for size in np.flatnonzero(shared).tolist()) / pairs, pairs)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """|A n B| / |A u B| of two arrays of different items; 0 for two empty ones."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - shared
    return shared / union if union else 0.0


def near_duplicates(sets: Sequence[np.ndarray], signed: np.ndarray, threshold: float) -> list[int]:
    """For every set the position of its cluster's first member, its own where it is alone.

    Sets whose MinHash signatures `signed` [n, 128] agree in a band are compared exactly and joined when their
    Jaccard similarity reaches `threshold`; clusters are connected by such pairs.
    """
    return clusters_of(sets, band_keys(signed), threshold)


def clusters_of(sets: Sequence[np.ndarray], bands: np.ndarray, threshold: float) -> list[int]:
    """`near_duplicates` from the keys [n, 32] of the bands alone."""
    cluster = list(range(len(sets)))

    def root(position: int) -> int:
        while cluster[position] != position:
            cluster[position] = cluster[cluster[position]]
            position = cluster[position]
        return position

    for group in _groups(bands):
        compared: list[int] = []
        for position in group:
            if not len(sets[position]):
                continue
            similar = [
                other
                for other in compared
                if root(other) == root(position) or jaccard(sets[other], sets[position]) >= threshold
            ]
            for other in similar:
                first, second = sorted((root(other), root(position)))
                cluster[second] = first
            if not similar and len(compared) < _COMPARED:
                compared.append(position)
    return [root(position) for position in range(len(sets))]


_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)


def band_keys(signed: np.ndarray) -> np.ndarray:
    """Signatures [n, 128] as a key for each band, [n, 32]: what agrees in a band has one key, hardly else anything."""
    parts = signed.astype(np.uint64).reshape(len(signed), _BANDS, -1) if signed.size else np.zeros((len(signed), 0, 4))
    keys = np.zeros(parts.shape[:2], np.uint64)
    for column, factor in enumerate(_ODD):
        mixed = (parts[:, :, column].astype(np.uint64) + np.uint64(column + 1)) * np.uint64(factor)
        keys = (keys ^ mixed ^ (mixed >> np.uint64(29))) * np.uint64(_ODD[0])
    return keys


def _groups(bands: np.ndarray) -> Iterator[list[int]]:
    """Groups of positions that agree in one band, in order."""
    for keys in bands.T if len(bands) > 1 else ():
        yield from equal_runs(keys)


def equal_runs(keys: np.ndarray) -> Iterator[list[int]]:
    """Positions of each value that is there twice and more, in order."""
    if len(keys) > 1:
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(np.diff(keys[order]) == 0)
        if not len(same):
            return
        breaks = np.flatnonzero(np.diff(same) > 1)
        starts = same[np.concatenate([[0], breaks + 1])]
        ends = same[np.concatenate([breaks, [len(same) - 1]])] + 2
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            yield order[start:end].tolist()
