"""How far a mean gradient has moved from the base weights' along a measured path, as a function of the travel."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Drift:
    """Zero at the base weights, a line between the points where it was measured, constant beyond the last.

    The travel is the sum of the learning rates so far: what an adaptive optimiser moves by is much the same per unit
    of it whatever the rate, so that a path measured at one rate tells the gradients along another.
    """

    travels: Sequence[float]  # rising, above zero: where it was measured
    read: Callable[[int, str], Tensor] = field(repr=False)  # (point, name) -> [out, in], any float dtype

    def at(self, travel: float, name: str) -> Tensor | None:
        """[out, in] fp32, the caller's own; None where nothing has moved."""
        if not self.travels or travel <= 0:
            return None
        point = bisect_left(self.travels, travel)
        if point == len(self.travels):
            return self.read(point - 1, name).to(torch.float32, copy=True)
        start = self.travels[point - 1] if point else 0.0
        share = (travel - start) / (self.travels[point] - start)
        ahead = self.read(point, name).float()
        return torch.lerp(self.read(point - 1, name).float(), ahead, share) if point else ahead * share
