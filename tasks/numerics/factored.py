"""Gradients and weight changes of one weight [out, in] as sums of thin products, and what both forms are read for.

The recursion over LoRA's factors reads a gradient G in two products alone, G A^T and B^T G. In factors these cost
(out + in) x rank instead of out x in, and the factors are what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factored:
    """exact @ lift + left @ right, a matrix [out, in] that is never formed.

    `lift` [r, in] is common to all gradients of a weight: it is (A0^T)^+ of a LoRA adapter's start, and `exact` is
    G A0^T. Sums add the exact parts and append the others.
    """

    exact: Tensor  # [out, r]; r is 0 where nothing is kept exactly
    lift: Tensor  # [r, in]
    left: Tensor  # [out, k]
    right: Tensor  # [k, in]

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """Of what is not kept exactly."""
        return self.left.shape[1]

    @property
    def nbytes(self) -> int:
        return self.exact.nbytes + self.left.nbytes + self.right.nbytes

    @property
    def dtype(self) -> torch.dtype:
        return self.left.dtype

    @property
    def device(self) -> torch.device:
        return self.left.device

    @property
    def T(self) -> Factored:  # noqa: N802 - as of a tensor
        return thin(*(part.T for part in reversed(self.factors())))

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.left @ (self.right @ other) + self.exact @ (self.lift @ other)

    def after(self, other: Tensor) -> Tensor:
        """other @ self."""
        return (other @ self.left) @ self.right + (other @ self.exact) @ self.lift

    def __mul__(self, factor: float) -> Factored:
        return replace(self, exact=self.exact * factor, left=self.left * factor)

    def __truediv__(self, divisor: float) -> Factored:
        return self * (1 / divisor)

    def to(self, like: torch.device | torch.dtype | str) -> Factored:
        return Factored(self.exact.to(like), self.lift.to(like), self.left.to(like), self.right.to(like))

    def fits(self, other: Factored) -> bool:
        """Whether the exact parts are of the same adapter, or one has none."""
        mine, theirs = self.lift, other.lift
        return not len(mine) or not len(theirs) or mine is theirs or torch.equal(mine, theirs)

    def double(self) -> Factored:
        return self.to(torch.float64)

    def float(self) -> Factored:
        return self.to(torch.float32)

    def factors(self) -> tuple[Tensor, Tensor]:
        """[out, r + k] and [r + k, in]."""
        return torch.cat([self.exact, self.left], dim=1), torch.cat([self.lift, self.right])

    def dense(self) -> Tensor:
        return self.left @ self.right + self.exact @ self.lift

    def norm(self) -> float:
        return max(inner(self, self), 0.0) ** 0.5

    def is_finite(self) -> bool:
        return all(bool(torch.isfinite(part).all()) for part in (self.exact, self.left, self.right))

    def truncated(self, rank: int) -> Factored:
        """The nearest of this rank beside the exact part; itself where its rank is no higher."""
        if self.rank <= rank:
            return self
        (q, r), (p, s) = torch.linalg.qr(self.left), torch.linalg.qr(self.right.T)
        u, values, v = torch.linalg.svd(r @ s.T, full_matrices=False)
        return replace(self, left=q @ (u[:, :rank] * values[:rank]), right=v[:rank] @ p.T)


Gradient = Tensor | Factored
"""[out, in] of one weight, in either form."""
Gradients = Mapping[str, Gradient]
"""{name: [out, in]}."""


def thin(left: Tensor, right: Tensor) -> Factored:
    """left @ right, nothing of it exact."""
    return Factored(left[:, :0], right[:0], left, right)


def certain(gradient: Gradient) -> Tensor:
    """What is known without error: in factors the exact part. What two of them miss does not go together, so that a
    coefficient over all of it would be too low (0.38 for 0.53 on SmolLM2, 0.52 by the exact parts)."""
    return gradient.exact if isinstance(gradient, Factored) else gradient


class Formable(Protocol):
    """[out, in] that is held in parts."""

    def dense(self) -> Tensor: ...


def dense(gradient: Tensor | Formable) -> Tensor:
    return gradient if isinstance(gradient, Tensor) else gradient.dense()


def plus(gradient: Gradient, other: Gradient, alpha: float = 1.0) -> Gradient:
    """gradient + alpha * other, into the first where that is a tensor."""
    if isinstance(gradient, Tensor):
        return gradient.add_(other if isinstance(other, Tensor) else other.dense().to(gradient), alpha=alpha)
    return _added(gradient, other, alpha)


def difference(gradient: Gradient, other: Gradient) -> Gradient:
    """gradient - other, in a place of its own."""
    if isinstance(gradient, Tensor) and isinstance(other, Tensor):
        return gradient - other.to(gradient)
    return _added(gradient, other, -1.0)


def lerp(start: Gradient, end: Gradient, share: float) -> Gradient:
    """start + share * (end - start), in a place of its own."""
    if isinstance(start, Tensor) and isinstance(end, Tensor):
        return torch.lerp(start, end, share)
    if start is end:
        return start
    return _added(start * (1 - share), end, share)


def inner(gradient: Gradient, other: Gradient) -> float:
    """<G, H>, accumulated in float64."""
    if isinstance(gradient, Tensor) and isinstance(other, Tensor):
        return torch.dot(gradient.reshape(-1).double(), other.reshape(-1).double()).item()
    if isinstance(gradient, Tensor):
        gradient, other = other, gradient
    left, right = cast("Factored", gradient).factors()
    if isinstance(other, Tensor):
        return float(((other.to(left) @ right.T).double() * left.double()).sum())
    others = other.factors()
    return float(((left.double().T @ others[0].double()) * (right.double() @ others[1].double().T)).sum())


def dot(one: Gradients, other: Gradients) -> float:
    """The inner product over all weights."""
    return sum(inner(gradient, other[name]) for name, gradient in one.items())


def distance(vector: Gradients) -> float:
    """The norm over all weights."""
    return math.sqrt(max(dot(vector, vector), 0.0))


def axpy(alpha: float, x: Gradients, y: Gradients) -> Gradients:
    """alpha * x + y, in a place of its own."""
    return {name: plus(each.clone() if isinstance(each, Tensor) else each, x[name], alpha) for name, each in y.items()}


def weighted_sum(parts: Iterable[Factored], rank: int) -> Factored:
    """The sum, what is not exact in no more than `rank`; shortened on the way, so that few are in memory at once."""
    following = iter(parts)
    total = next(following)
    for part in following:
        total = _sum(total, part, 1.0)
        if total.rank > 2 * rank:
            total = total.truncated(rank)
    return total.truncated(rank)


def _added(one: Gradient, other: Gradient, alpha: float) -> Gradient:
    """one + alpha * other: dense where one of them is, and where they are exact for different adapters."""
    other = other.to(one.device)
    if isinstance(one, Factored) and isinstance(other, Factored) and one.fits(other):
        return _sum(one, other, alpha)
    return torch.add(dense(one), dense(other).to(dense(one)), alpha=alpha)


def _sum(one: Factored, other: Factored, alpha: float) -> Factored:
    lift = one.lift if one.exact.shape[1] else other.lift
    if one.exact.shape[1] and other.exact.shape[1]:
        exact = torch.add(one.exact, other.exact, alpha=alpha)
    else:
        exact = one.exact if one.exact.shape[1] else other.exact * alpha
    return Factored(exact, lift, torch.cat([one.left, other.left * alpha], 1), torch.cat([one.right, other.right]))
