"""Two models on the same items: the mean change with a bootstrap interval over the items, and an exact sign test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_ITEMS = 8
"""Fewer items tell nothing: with five changes of one sign the interval would always leave out zero."""
CHUNK = 2**22
"""Draws at a time."""


@dataclass(frozen=True)
class Change:
    """The mean of predicted less base, per item."""

    items: int
    base: float
    predicted: float
    change: float
    low: float  # of the change, percentile bootstrap
    high: float
    up: int  # items whose score rises
    down: int
    p: float  # two-sided exact sign test; on right and wrong answers McNemar's exact test

    @property
    def measured(self) -> bool:
        """Whether the interval leaves out zero, over enough items."""
        return self.items >= MIN_ITEMS and (self.low > 0 or self.high < 0)


def paired_change(
    base: Sequence[float], predicted: Sequence[float], confidence: float, resamples: int, seed: int
) -> Change:
    """Scores of the same items under both models. Items are the sample: each is its own control."""
    first, second = np.asarray(base, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    differences = second - first
    low, high = mean_interval(differences, confidence, resamples, seed)
    up, down = int((differences > 0).sum()), int((differences < 0).sum())
    return Change(
        len(differences),
        float(first.mean()),
        float(second.mean()),
        float(differences.mean()),
        low,
        high,
        up,
        down,
        sign_test(up, down),
    )


def mean_interval(values: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron 1979): `resamples` draws of as many items with replacement."""
    generator, n = np.random.default_rng(seed), len(values)
    step = max(1, CHUNK // n)
    counts = [min(step, resamples - start) for start in range(0, resamples, step)]
    means = np.concatenate([values[generator.integers(0, n, (count, n))].mean(axis=1) for count in counts])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def sign_test(up: int, down: int) -> float:
    """Two-sided p of as uneven a split of `up + down` items, each way being as likely; 1 for none."""
    n, most = up + down, max(up, down)
    tail = sum(math.comb(n, k) for k in range(most, n + 1))
    return min(1.0, float(2 * tail / 2**n)) if n else 1.0
