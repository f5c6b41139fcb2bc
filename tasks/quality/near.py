"""Near duplicates among a million rows: MinHash bands as numbers, candidates compared by arrays, never row by row."""

from __future__ import annotations

import numpy as np

BANDS, _ROWS = 32, 4
"""A pair of Jaccard similarity 0.7 agrees in a band with probability 0.24: in one of 32 with 0.9999."""
SKETCH = 64
"""Hashes of which a byte is kept: at 0.7 some 45 of them agree, and fewer than 28 once in a million."""
_AGREE = 28
_FEW = 4
"""A band that more rows agree in, mostly by chance, is split by what they say in each of four others."""
_SPLIT_BY = 4
_COMPARED = 8  # different rows of a group that every other is compared with
_DRAW = np.random.Generator(np.random.PCG64(42))
_XOR = _DRAW.integers(0, 2**32, BANDS * _ROWS, np.uint32)
_TIMES = _DRAW.integers(0, 2**32, BANDS * _ROWS, np.uint32) | np.uint32(1)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_PAIRS = 200_000  # compared at once


def band_and_sketch(words: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(uint32 [rows, 32], uint8 [rows, 64]) of rows whose different words (uint32) stand one after another."""
    sizes = np.diff(ends, prepend=0)
    some = np.flatnonzero(sizes)
    starts = (ends - sizes)[some]
    bands = np.zeros((len(ends), BANDS), np.uint32)
    sketch = np.zeros((len(ends), SKETCH), np.uint8)
    if not len(some):
        return bands, sketch
    hashed = np.empty_like(words)
    for band in range(BANDS):
        key = np.zeros(len(some), np.uint64)
        for number in range(band * _ROWS, (band + 1) * _ROWS):
            np.bitwise_xor(words, _XOR[number], out=hashed)
            np.multiply(hashed, _TIMES[number], out=hashed)
            least = np.minimum.reduceat(hashed, starts)
            key = (key ^ least) * np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(31)
            if number < SKETCH:
                sketch[some, number] = (least >> np.uint32(3)).astype(np.uint8)
        bands[some, band] = (key >> np.uint64(20)).astype(np.uint32)
    return bands, sketch


class Clusters:
    """Rows joined to the first of their kind."""

    def __init__(self, words: np.ndarray, starts: np.ndarray, sketch: np.ndarray, threshold: float) -> None:
        self.words, self.starts, self.sketch, self.threshold = words, starts, sketch, threshold
        self.first = np.arange(len(starts) - 1)

    def join(self, bands: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """For every row the first of its cluster, its own number where it is alone; only `rows` are compared."""
        rows = rows[np.diff(self.starts)[rows] > 0]
        for band in range(bands.shape[1]):
            few, many = _groups(bands[rows, band].astype(np.uint64) << np.uint64(32), rows)
            self._within(*few)
            own = bands[many, band].astype(np.uint64) * _SPREAD
            for other in range(band + 1, band + 1 + _SPLIT_BY) if len(many) else ():
                self._within(*_all_groups((own ^ bands[many, other % bands.shape[1]]) * _SPREAD, many))
        return self.first

    def _within(self, rows: np.ndarray, group: np.ndarray) -> None:
        """Rows by group, ascending: each with the first eight of its group that are alike to none before."""
        alone = np.ones(len(rows), bool)  # alike to none of those that others were compared with
        began = np.ones(len(rows), bool)
        began[1:] = group[1:] != group[:-1]
        start = np.flatnonzero(began)
        for _ in range(_COMPARED):
            waiting = np.flatnonzero(alone)
            if not len(waiting):
                return
            # The first that is left of each group; what stands before it was compared already.
            of = group[waiting]
            at = np.flatnonzero(np.concatenate([[True], of[1:] != of[:-1]]))
            lead = np.full(len(start), -1)
            lead[group[waiting[at]]] = waiting[at]
            alone[waiting[at]] = False
            leads = lead[group]
            members = np.flatnonzero((leads >= 0) & (np.arange(len(rows)) > leads))
            if not len(members):
                return
            leads = leads[members]
            alike = self._alike(rows[leads], rows[members])
            alone[members[alike]] = False

    def _alike(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        alike = self.first[one] == self.first[other]
        for begin in range(0, len(one), _PAIRS):
            at = begin + np.flatnonzero(~alike[begin : begin + _PAIRS])
            a, b = one[at], other[at]
            agree = np.count_nonzero(self.sketch[a] == self.sketch[b], axis=1)
            at = at[agree >= _AGREE]
            a, b = one[at], other[at]
            at = at[jaccards(self.words, self.starts, a, b) >= self.threshold]
            alike[at] = True
            for first, second in zip(one[at].tolist(), other[at].tolist(), strict=True):
                self._unite(first, second)
        return alike

    def _unite(self, one: int, other: int) -> None:
        a, b = self._root(one), self._root(other)
        self.first[max(a, b)] = min(a, b)
        self.first[one] = self.first[other] = min(a, b)

    def _root(self, row: int) -> int:
        while self.first[row] != row:
            self.first[row] = self.first[self.first[row]]
            row = int(self.first[row])
        return row

    def roots(self) -> np.ndarray:
        """Every row's first."""
        while True:
            further = self.first[self.first]
            if np.array_equal(further, self.first):
                return self.first
            self.first = further


def _groups(keys: np.ndarray, rows: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """((rows, their group) of the groups of few, rows of the groups of many)."""
    rows, group = _all_groups(keys, rows)
    sizes = np.bincount(group)
    few = sizes[group] <= _FEW
    kept = rows[few], np.unique(group[few], return_inverse=True)[1]
    return kept, np.sort(rows[~few])


def _all_groups(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, number of their group) of every key that is there twice and more, in the order of rows.

    Of the keys the upper bits count, as many as the numbers of the rows leave: sorted together they need no argsort.
    """
    below = np.uint64(max(len(rows) - 1, 1).bit_length())
    keys = np.sort((keys >> below << below) | np.arange(len(rows), dtype=np.uint64))
    order = (keys & ((np.uint64(1) << below) - np.uint64(1))).astype(np.int64)
    keys >>= below
    same = np.zeros(len(keys) + 1, bool)
    same[1:-1] = keys[1:] == keys[:-1]
    member = same[1:] | same[:-1]
    began = member & ~same[:-1]
    return rows[order[member]], np.cumsum(began)[member] - 1


def jaccards(words: np.ndarray, starts: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """|A n B| / |A u B| of pairs of rows whose different words stand in `words` from `starts` on."""
    found = np.zeros(len(one))
    for begin in range(0, len(one), 20_000):
        a, b = one[begin : begin + 20_000], other[begin : begin + 20_000]
        pair, value = (
            np.concatenate(each) for each in zip(_spread(words, starts, a), _spread(words, starts, b), strict=True)
        )
        keys = np.sort((pair.astype(np.uint64) << np.uint64(32)) | value)
        shared = np.bincount((keys[1:][keys[1:] == keys[:-1]] >> np.uint64(32)).astype(np.int64), minlength=len(a))
        sizes = starts[a + 1] - starts[a] + starts[b + 1] - starts[b] - shared
        found[begin : begin + 20_000] = shared / np.maximum(sizes, 1)
    return found


def _spread(words: np.ndarray, starts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which of `rows`, word) for every word of them."""
    sizes = starts[rows + 1] - starts[rows]
    which = np.repeat(np.arange(len(rows)), sizes)
    inside = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return which, words[np.repeat(starts[rows], sizes) + inside]
