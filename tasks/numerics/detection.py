"""How well a score tells one set of things from another."""

from __future__ import annotations

import torch
from torch import Tensor


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Probability that a positive [n] scores above a negative [m], ties counting half; not a number where one is empty.

    Mann and Whitney's U over n m: 0.5 is chance, whatever the share of positives.
    """
    n, m = positive.numel(), negative.numel()
    if not n or not m:
        return float("nan")
    ordered, scores = negative.double().sort().values, positive.double()
    below, up_to = torch.searchsorted(ordered, scores), torch.searchsorted(ordered, scores, right=True)
    return float((below + up_to).sum()) / (2 * n * m)
