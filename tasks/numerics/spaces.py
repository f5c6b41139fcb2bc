"""Adapter coordinates theta and the weight deltas they stand for.

A space is linear: `lift` maps theta to weight deltas, `pull` is its adjoint, <lift(t), G> = <t, pull(G)>.
Gradients and curvature in theta follow from those in the weights: grad = pull(G), H = pull o H_W o lift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from foretune.tasks.numerics.factored import Gradient, dense
from foretune.tasks.numerics.products import across
from foretune.tasks.numerics.vectors import Vector


def coordinate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Coordinates are kept in float32 when the weights are half precision."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


@dataclass(frozen=True)
class FullSpace:
    """theta is the weight delta itself, {name: [out, in]}."""

    def lift(self, theta: Vector) -> Vector:
        return theta

    def pull(self, gradient: Mapping[str, Gradient]) -> Vector:
        return {name: dense(g) for name, g in gradient.items()}

    def zeros(self, weights: Vector) -> Vector:
        return {n: torch.zeros_like(w, dtype=coordinate_dtype(w.dtype)) for n, w in weights.items()}


@dataclass(frozen=True)
class LoraSpace:
    """theta = {name: B [out, r]} around B = 0, where the factor A [r, in] does not move to first order.

    `scale` is alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.
    """

    A: Vector  # {name: [r, in]}
    scale: float

    def lift(self, theta: Vector) -> Vector:
        return {name: self.scale * (b @ self.A[name].to(b.dtype)) for name, b in theta.items()}

    def pull(self, gradient: Mapping[str, Gradient]) -> Vector:
        return {name: self.scale * across(g, self.A[name].to(g.dtype)) for name, g in gradient.items()}

    def zeros(self, weights: Vector) -> Vector:
        return {
            name: torch.zeros(w.shape[0], self.A[name].shape[0], device=w.device, dtype=coordinate_dtype(w.dtype))
            for name, w in weights.items()
        }


Space = FullSpace | LoraSpace
