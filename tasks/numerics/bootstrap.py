"""Bootstrap interval of a ratio of two sums over rows: rows are the sample, not their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2**22
"""Indices that are drawn at once."""


@dataclass(frozen=True)
class Interval:
    """Of a mean per token."""

    low: float
    high: float
    draws: int


def paired_interval(
    changes: Tensor, tokens: Tensor, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """Percentile interval of sum(changes) / sum(tokens), [n] each, over rows drawn with replacement
    (Efron and Tibshirani 1993, chapter 13). Each row is its own control. None below two rows, or without draws.
    """
    rows = len(tokens)
    if rows < 2 or not draws:
        return None
    generator = torch.Generator().manual_seed(seed)
    step = max(1, CHUNK // rows)
    found = []
    for at in range(0, draws, step):
        chosen = torch.randint(rows, (min(step, draws - at), rows), generator=generator)
        found.append(changes.double()[chosen].sum(-1) / tokens.double()[chosen].sum(-1))
    ends = torch.quantile(torch.cat(found), torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    return Interval(float(ends[0]), float(ends[1]), draws)
