"""The gradient of a virtual batch. The recursion over LoRA's factors reads two products of it alone, G A^T and B^T G,
and it is a sum of stored parts, which takes longer to form than both products of every part."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foretune.tasks.numerics.factored import Factored, Gradient, lerp


@dataclass(frozen=True)
class Corrected:
    """matrix + left @ right, [out, in]."""

    matrix: Tensor  # [out, in]
    left: Tensor  # [out, r]
    right: Tensor  # [r, in]

    def __matmul__(self, other: Tensor) -> Tensor:
        return (self.matrix @ other).addmm_(self.left, self.right @ other)

    def after(self, other: Tensor) -> Tensor:
        """other @ self."""
        return (other @ self.matrix).addmm_(other @ self.left, self.right)

    def dense(self) -> Tensor:
        return self.matrix.addmm(self.left, self.right)


@dataclass(frozen=True)
class Summed:
    """exact @ lift + sum_i c_i left_i @ right_i, [out, in]: gradients in factors, of which the exact parts alone are
    added up. To append the factors would copy them at every step."""

    exact: Tensor  # [out, r]
    lift: Tensor  # [r, in]
    parts: tuple[tuple[float, Tensor, Tensor], ...]  # c, [out, k], [k, in]

    @classmethod
    def of(cls, gradient: Factored, factor: float = 1.0) -> Summed:
        return cls(gradient.exact * factor, gradient.lift, ((factor, gradient.left, gradient.right),))

    @property
    def dtype(self) -> torch.dtype:
        return self.exact.dtype

    @property
    def device(self) -> torch.device:
        return self.exact.device

    def plus(self, other: Factored, factor: float) -> Summed:
        """self + factor * other."""
        other = other.to(self.device)
        added = replace(self, parts=(*self.parts, (factor, other.left, other.right)))
        return added.moved(other.exact * factor, other.lift) if other.exact.shape[1] else added

    def moved(self, exact: Tensor, lift: Tensor) -> Summed:
        """self + exact @ lift: of its own lift to the exact part."""
        if lift is self.lift or torch.equal(lift, self.lift):
            return replace(self, exact=self.exact + exact)
        return replace(self, parts=(*self.parts, (1.0, exact, lift)))

    def __matmul__(self, other: Tensor) -> Tensor:
        total = self.exact @ (self.lift @ other)
        for factor, left, right in self.parts:
            total.addmm_(left, right @ other, alpha=factor)
        return total

    def after(self, other: Tensor) -> Tensor:
        """other @ self."""
        total = (other @ self.exact) @ self.lift
        for factor, left, right in self.parts:
            total.addmm_(other @ left, right, alpha=factor)
        return total

    def dense(self) -> Tensor:
        total = self.exact @ self.lift
        for factor, left, right in self.parts:
            total.addmm_(left, right, alpha=factor)
        return total


Multiplicand = Gradient | Corrected | Summed
"""[out, in] of one weight, of which both products can be taken."""


def across(gradient: Multiplicand, down: Tensor) -> Tensor:
    """G A^T, [out, r], of A [r, in]."""
    return gradient @ down.T


def along(gradient: Multiplicand, up: Tensor) -> Tensor:
    """B^T G, [r, in], of B [out, r]."""
    return up.T @ gradient if isinstance(gradient, Tensor) else gradient.after(up.T)


def between(start: Gradient, end: Gradient, share: float) -> Gradient | Summed:
    """start + share * (end - start), in a place of its own where it is a tensor."""
    if start is not end and isinstance(start, Factored) and isinstance(end, Factored):
        return Summed.of(start, 1 - share).plus(end, share)
    return lerp(start, end, share)
