"""Adam's diagonal at the base weights: the second moment that the first steps of a run will divide by."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.numerics.field import GradientField
from tasks.numerics.spaces import Space
from tasks.numerics.vectors import Vector


def second_moment(field: GradientField, space: Space, batch_rows: int, names: list[str] | None = None) -> Vector:
    """E[g^2] of a batch gradient in adapter coordinates: mean^2 + variance over batches of `batch_rows` rows.

    The variance between nodes is that of node-sized batches; `noise_factor` rescales it to the real batch size.
    One weight of the field is in memory at a time.
    """
    moments: dict[str, Tensor] = {}
    factors = [field.noise_factor([node], batch_rows) ** 2 for node in range(field.nodes)]
    for name in names or field.names:
        mean = space.pull({name: field.mean(name)})[name]
        variance = torch.zeros_like(mean)
        for node, factor in enumerate(factors):
            node_gradient = space.pull({name: field.group_mean([node], name)})[name]
            variance += factor * (node_gradient - mean).square()
        moments[name] = mean.square() + variance / field.nodes
    return moments


def adam_direction(gradient: Vector, moments: Vector, epsilon: float) -> Vector:
    """gradient / (sqrt(E[g^2]) + epsilon), coordinate by coordinate: what Adam makes of a small extra gradient."""
    return {name: g / (moments[name].sqrt() + epsilon) for name, g in gradient.items()}
