"""Two models on the same items: the mean change with a bootstrap interval over the items, and an exact sign test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_ITEMS = 8
"""Fewer items tell nothing: with five changes of one sign the interval would always leave out zero."""


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
    """Scores of the same items under both models. Items are the sample: each is its own control. The interval is the
    percentile bootstrap's; of one item it is the change itself."""
    import torch

    from foretune.tasks.numerics.bootstrap import paired_interval
    from foretune.tasks.numerics.flips import mcnemar

    first, second = (torch.tensor(side, dtype=torch.float64) for side in (base, predicted))
    differences = second - first
    change = float(differences.mean())
    interval = paired_interval(differences, torch.ones_like(differences), resamples, confidence, seed)
    up, down = int((differences > 0).sum()), int((differences < 0).sum())
    return Change(
        items=len(differences),
        base=float(first.mean()),
        predicted=float(second.mean()),
        change=change,
        low=change if interval is None else interval.low,
        high=change if interval is None else interval.high,
        up=up,
        down=down,
        p=mcnemar(up, down),
    )
