"""Which directions lie nearest to each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

AT_ONCE = 1024
"""Rows compared with all others at a time: of 64 thousand directions that is 256 MB."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest other rows of each row, nearest first."""

    places: Tensor  # [n, k] int64
    cosines: Tensor  # [n, k] float32


def nearest_directions(directions: Tensor, most: int) -> Neighbours:
    """The `most` other rows of `directions` [n, d] with the largest cosine; fewer where there are no more."""
    unit = torch.nn.functional.normalize(directions.float(), dim=1)
    count = min(most, max(len(unit) - 1, 0))
    places, cosines = [], []
    for start in range(0, len(unit), AT_ONCE):
        alike = unit[start : start + AT_ONCE] @ unit.T
        rows = torch.arange(len(alike), device=alike.device)
        alike[rows, rows + start] = -torch.inf
        found = alike.topk(count, dim=1)
        places.append(found.indices.cpu())
        cosines.append(found.values.cpu())
    if not places:
        return Neighbours(torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, 0))
    return Neighbours(torch.cat(places), torch.cat(cosines))
