"""Adam's diagonal at the base weights: what its normalisation makes of one more row's gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foretune.tasks.numerics.field import GradientField
from foretune.tasks.numerics.spaces import Space


@dataclass(frozen=True)
class Moments:
    """A batch gradient's first two moments over the draw of its rows, in adapter coordinates of one module."""

    mean: Tensor
    variance: Tensor

    def adam(self, gradient: Tensor, epsilon: float) -> Tensor:
        """What Adam's expected step does along `gradient` per unit of a coordinate's mean gradient.

        The step g / sqrt(E[g^2]) with E[g^2] = mean^2 + variance has the derivative variance / E[g^2]^1.5 in the
        mean: where the sign of a coordinate is certain already, a row cannot change its step.
        """
        second = self.mean.square() + self.variance
        return gradient * self.variance / (second * (second.sqrt() + epsilon) + torch.finfo(second.dtype).tiny)


def node_moments(field: GradientField, space: Space, batch_rows: int, name: str) -> Moments:
    """Moments of batches of `batch_rows` rows from the scatter between the field's nodes.

    `noise_factor` rescales it to the batch's size. A batch of all rows has no scatter, and one of half of them
    stands for it.
    """
    batch_rows = max(1, min(batch_rows, sum(field.rows) // 2))
    mean = space.pull({name: field.mean(name)})[name]
    variance = torch.zeros_like(mean)
    for node in range(field.blocks):
        factor = field.noise_factor([node], batch_rows) ** 2
        node_gradient = space.pull({name: field.group_mean([node], name)})[name]
        variance += factor / field.blocks * (node_gradient - mean).square()
    return Moments(mean, variance)


def row_moments(rows: Tensor, tokens: Tensor, batch_rows: int) -> Moments:
    """Moments of the token-mean gradient of `batch_rows` random rows, from each row's summed [n, d] and tokens [n].

    The ratio estimator's variance, b / n^2 sum (g_i - t_i mean)^2 / N over batches of b rows with n tokens. Rows are
    drawn with replacement, so that a batch of all rows has a scatter too.
    """
    mean = rows.sum(0) / tokens.sum()
    scatter = (rows - tokens[:, None] * mean).square().mean(0)
    return Moments(mean, scatter / (batch_rows * tokens.mean() ** 2))
