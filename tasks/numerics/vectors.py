"""Arithmetic on module vectors: one tensor per adapted module, keyed by parameter name."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Vector = dict[str, Tensor]


def dot(a: Vector, b: Vector) -> float:
    """Inner product over all modules, accumulated in float64.

    Raises ValueError when the two vectors do not hold the same modules.
    """
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(f"vectors of {len(a)} and {len(b)} modules do not match, first difference: {odd[0]}")
    return sum(_dot(a[name], b[name]) for name in a)


def norm(a: Vector) -> float:
    return math.sqrt(sum(_dot(t, t) for t in a.values()))


def module_norms(a: Vector) -> dict[str, float]:
    return {name: math.sqrt(_dot(t, t)) for name, t in a.items()}


def axpy(alpha: float, x: Vector, y: Vector) -> Vector:
    """alpha * x + y."""
    return {name: torch.add(y[name], x[name], alpha=alpha) for name in y}


def scale(alpha: float, x: Vector) -> Vector:
    return {name: t * alpha for name, t in x.items()}


def zeros_like(x: Vector) -> Vector:
    return {name: torch.zeros_like(t) for name, t in x.items()}


def random_like(x: Vector, generator: torch.Generator, law: str = "normal") -> Vector:
    """Independent entries, N(0, 1) or Rademacher signs (`law="signs"`), drawn on the CPU so that a seed
    gives the same vector on every device."""
    drawn = {}
    for name, t in x.items():
        entries = torch.randn(t.shape, generator=generator, dtype=torch.float32)
        if law == "signs":
            entries = torch.where(entries < 0, -1.0, 1.0)
        drawn[name] = entries.to(device=t.device, dtype=t.dtype)
    return drawn


def is_finite(x: Vector) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in x.values())


def _dot(a: Tensor, b: Tensor) -> float:
    return torch.dot(a.reshape(-1).double(), b.reshape(-1).double()).item()
