"""Scores of rows that were only read, from those of rows that were measured: ridge regression on what a forward gives.

The penalty is chosen, and the error told, by leaving out each measured row in turn, in closed form (Allen 1974; Hastie,
Tibshirani & Friedman, The Elements of Statistical Learning, 7.10).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = tuple(10.0 ** (power / 2) for power in range(-6, 9))
"""Of the mean eigenvalue of the rows' inner products."""


@dataclass(frozen=True)
class Regression:
    """Scores of other rows, one column per target."""

    scores: Tensor  # [n, targets] float64
    left_out: Tensor  # [m, targets] float64 score of every measured row by all others
    errors: Tensor  # [targets] root mean square of what leaving a row out gets wrong
    explained: Tensor  # [targets] share of the scores' variance that is told when a row is left out; below 0: none


def regressed(measured: Tensor, scores: Tensor, others: Tensor) -> Regression:
    """`measured` [m, f] features of the rows with `scores` [m, targets], `others` [n, f] those of the rows without.

    Every feature is centred and put in units of its spread over the measured rows; one that is constant there says
    nothing. Raises ValueError for fewer than three measured rows.
    """
    if len(measured) < 3:
        raise ValueError(f"{len(measured)} measured rows: a regression needs at least 3")
    known, mean, spread = scores.double(), measured.double().mean(0), measured.double().std(0)
    varies = spread > 1e-9 * (mean.abs() + spread)
    x, new = ((part.double()[:, varies] - mean[varies]) / spread[varies] for part in (measured, others))
    middle = known.mean(0)
    values, vectors = torch.linalg.eigh(x @ x.T)
    values, told = values.clamp_min(0.0), vectors.T @ (known - middle)
    unit = float(values.mean()) or 1.0
    tried = [_left_out(values, vectors, told, known - middle, ridge * unit) for ridge in RIDGES]
    best = torch.stack([wrong.square().mean(0) for wrong in tried]).argmin(0)  # [targets]
    penalty = torch.tensor(RIDGES, dtype=torch.float64)[best] * unit
    weights = vectors @ (told / (values[:, None] + penalty))
    wrong = torch.stack(tried)[best, :, torch.arange(len(best))].T
    square = wrong.square().mean(0)
    variance = (known - middle).square().mean(0).clamp_min(1e-300)
    return Regression(middle + new @ (x.T @ weights), known - wrong, square.sqrt(), 1 - square / variance)


def _left_out(values: Tensor, vectors: Tensor, told: Tensor, known: Tensor, penalty: float) -> Tensor:
    """[m, targets] what each row's score is wrong by when it is left out; the mean is one parameter more."""
    kept = values / (values + penalty)
    leverage = (vectors.square() @ kept + 1 / len(values)).clamp_max(1 - 1e-6)
    return (known - vectors @ (kept[:, None] * told)) / (1 - leverage[:, None])
