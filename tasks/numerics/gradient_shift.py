"""How far a mean gradient is from that at the base weights, along a measured path, by cumulative learning rate."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch

from foretune.tasks.numerics.factored import Factored, Gradient, lerp, plus
from foretune.tasks.numerics.products import Summed


@dataclass(frozen=True)
class GradientShift:
    """Zero at the base weights, linear between the points where it was measured, constant beyond the last.

    The abscissa is the cumulative learning rate: an adaptive optimiser moves much the same distance per unit of it
    whatever the rate, so that a path measured at one rate gives the gradients of a run at another.
    """

    elapsed_lr: Sequence[float]  # of the measured points, rising, above zero
    read: Callable[[int, str], Gradient] = field(repr=False)  # (point, name) -> [out, in], any float dtype

    def weights(self, elapsed_lr: float) -> dict[int, float]:
        """{point: weight}, whose weighted sum is the shift here; empty where there is none."""
        if not self.elapsed_lr or elapsed_lr <= 0:
            return {}
        point = bisect_left(self.elapsed_lr, elapsed_lr)
        if point == len(self.elapsed_lr):
            return {point - 1: 1.0}
        start = self.elapsed_lr[point - 1] if point else 0.0
        share = (elapsed_lr - start) / (self.elapsed_lr[point] - start)
        return {point - 1: 1 - share, point: share} if point else {point: share}

    def added(self, mean: Gradient, elapsed_lr: float, name: str) -> Gradient | Summed:
        """mean + the shift here, in a place of its own where it is a tensor."""
        points = [(weight, self.read(point, name)) for point, weight in self.weights(elapsed_lr).items()]
        if isinstance(mean, Factored) and all(isinstance(shift, Factored) for _, shift in points):
            summed = Summed.of(mean)
            for weight, shift in points:
                summed = summed.plus(cast("Factored", shift).float(), weight)
            return summed
        shift = self.at(elapsed_lr, name)
        if shift is None:
            return mean.clone() if isinstance(mean, torch.Tensor) else mean
        return plus(shift, mean)

    def at(self, elapsed_lr: float, name: str) -> Gradient | None:
        """[out, in] fp32, which the caller may change; None where there is no shift."""
        if not self.elapsed_lr or elapsed_lr <= 0:
            return None
        point = bisect_left(self.elapsed_lr, elapsed_lr)
        if point == len(self.elapsed_lr):
            return self._copied(point - 1, name)
        start = self.elapsed_lr[point - 1] if point else 0.0
        share = (elapsed_lr - start) / (self.elapsed_lr[point] - start)
        ahead = self.read(point, name).float()
        return lerp(self.read(point - 1, name).float(), ahead, share) if point else ahead * share

    def _copied(self, point: int, name: str) -> Gradient:
        found = self.read(point, name)
        return found.to(torch.float32, copy=True) if isinstance(found, torch.Tensor) else found.float()
