"""Pairs that two models decide differently, and whether as many flips one way are chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Flips:
    """A pair is won where the chosen answer has the higher log-probability."""

    won_base: int
    won_new: int
    to_won: int  # lost at the base weights, won now
    to_lost: int
    p_value: float  # exact McNemar test of as many flips each way


def flips(margin_base: Tensor, margin_new: Tensor) -> Flips:
    """Of margins log p(chosen) - log p(rejected), [n] each."""
    before, after = margin_base > 0, margin_new > 0
    to_won, to_lost = int((after & ~before).sum()), int((before & ~after).sum())
    return Flips(int(before.sum()), int(after.sum()), to_won, to_lost, mcnemar(to_won, to_lost))


def mcnemar(up: int, down: int) -> float:
    """Two-sided exact p-value of `up` and `down` flips, each way as likely (McNemar 1947): a binomial test at 1/2."""
    total, fewer = up + down, min(up, down)
    if not total:
        return 1.0
    log_total = math.lgamma(total + 1) - total * math.log(2)
    tail = sum(math.exp(log_total - math.lgamma(k + 1) - math.lgamma(total - k + 1)) for k in range(fewer + 1))
    return min(1.0, 2 * tail)
