"""How the residual stream moves between two models, without an SAE: its mean change and its principal directions.

A direction that is fitted to a sample is always large on that sample, so every figure here is cross-fitted: a token's
change is projected on the direction that the other half of the rows gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foretune.tasks.numerics.activations import paired_change, split_half
from foretune.tasks.numerics.singular import largest_singular


@dataclass(frozen=True)
class MovedDirections:
    """k directions of a change; units are those of the residual stream, per token."""

    directions: Tensor  # [k, d] unit vectors of all rows; the mean change along each is not negative
    change: Tensor  # [k] mean change along the other half's direction
    error: Tensor  # [k] its standard error over rows
    z: Tensor  # [k]
    first: Tensor | None  # [k] the same on either half of the rows; None where a half has no token
    second: Tensor | None
    stability: Tensor | None  # [k] cosine of the two halves' directions that come nearest to it
    share: Tensor  # [k] of the change's sum of squares, in sample


def mean_direction(differences: Tensor) -> Tensor:
    """[1, d]: the mean of differences [t, d], as a unit vector."""
    return normalize(differences.mean(0, keepdim=True), dim=1)


def principal_directions(k: int) -> Callable[[Tensor], Tensor]:
    """The fit of the first k right singular vectors [k, d] of differences [t, d], which are not centred."""
    return lambda differences: largest_singular(differences, k).inputs.T


def moved_directions(differences: Tensor, rows: Tensor, fit: Callable[[Tensor], Tensor]) -> MovedDirections:
    """Of differences [t, d] of tokens of the rows [t] (any numbers, ascending); `fit` as the functions above.

    Halves are every other row. Without two of them the figures are in sample, and z is that of one half.
    """
    places = rows.unique(return_inverse=True)[1]
    halves = [places % 2 == half for half in (0, 1)]
    whole = fit(differences)
    whole = whole * torch.where((differences @ whole.T).mean(0) < 0, -1.0, 1.0)[:, None]
    apart = all(bool(half.any()) for half in halves)
    fitted = [_nearest(whole, fit(differences[half])) for half in halves] if apart else [whole, whole]
    along = torch.empty(len(differences), len(whole))
    for half, direction in zip(halves, reversed(fitted), strict=True):
        along[half] = differences[half] @ direction.T
    n = int(places.max()) + 1
    sums = torch.zeros(n, len(whole), dtype=torch.float64).index_add_(0, places, along.double())
    tokens = torch.zeros(n, dtype=torch.float64).index_add_(0, places, torch.ones(len(places), dtype=torch.float64))
    found, parts = paired_change(torch.zeros_like(sums), sums, tokens), None
    if apart:
        parts = split_half(torch.zeros_like(sums), sums, tokens)
    return MovedDirections(
        whole,
        found.change,
        found.error,
        found.z,
        parts.first if parts else None,
        parts.second if parts else None,
        (fitted[0] * fitted[1]).sum(1) if apart else None,
        (differences @ whole.T).square().sum(0) / differences.square().sum().clamp_min(1e-30),
    )


def _nearest(directions: Tensor, candidates: Tensor) -> Tensor:
    """[k, d]: for every direction the candidate that points most along it, turned to its side."""
    cosines = directions @ candidates.T
    at = cosines.abs().argmax(1)
    chosen = cosines.gather(1, at[:, None])
    return candidates[at] * torch.where(chosen < 0, -1.0, 1.0)
