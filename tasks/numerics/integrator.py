"""Anchors: the gradient field measured again along the predicted path, and the recursion carried on over it.

One segment is predicted with the field extrapolated from the anchors behind it, the gradients of a few nodes are
measured at its predicted end, and the segment is replayed with the field interpolated to that end: a predictor
and a corrector with one measurement per segment.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from tasks.numerics.field import GradientField, VirtualBatches
from tasks.numerics.optimizers import OptimizerSettings
from tasks.numerics.replay import Adapter, Replay, ReplayState, replay
from tasks.numerics.vectors import Vector, norm

# measure(delta, nodes): node sums of gradients, as GradientField.read gives them, at base weights + delta
Measure = Callable[[Vector, Sequence[int]], Sequence[Mapping[str, Tensor]]]


@dataclass(frozen=True)
class MeanEstimate:
    mean: Vector  # {name: [out, in]} gradient of the token-mean loss over all nodes
    carry: float  # share of a node's deviation from the mean that it has kept since the base weights


def estimate_mean(
    field: GradientField, nodes: Sequence[int], measured: Sequence[Mapping[str, Tensor]]
) -> MeanEstimate:
    """Mean gradient of the whole field from some nodes' gradients measured elsewhere: a control variate.

    mean(theta) ~ mean_S(theta) + carry * (mean(0) - mean_S(0)), where `carry` in [0, 1] is the regression of the
    nodes' deviations from mean_S at theta on their deviations at the base weights, all weights together. One
    node has no deviation from itself; carry is then 0.
    """
    tokens = [field.tokens[node] for node in nodes]
    now, base, shared, spread = {}, {}, 0.0, 0.0
    for name in field.names:
        now[name] = sum(m[name].float() for m in measured) / sum(tokens)
        base[name] = field.group_mean(nodes, name)
        for node, count, gradient in zip(nodes, tokens, measured, strict=True):
            before = field.read(node, name).float() / count - base[name]
            shared += float((before * (gradient[name] / count - now[name])).sum())
            spread += float(before.square().sum())
    carry = min(1.0, max(0.0, shared / spread)) if spread and len(nodes) > 1 else 0.0
    mean = {name: now[name] + carry * (field.mean(name) - base[name]) for name in field.names}
    return MeanEstimate(mean, carry)


@dataclass(frozen=True)
class Anchor:
    step: int  # optimiser steps taken where the field was measured again
    nodes: tuple[int, ...]  # nodes measured
    carry: float  # see MeanEstimate
    correction: float  # movement that the corrector changed, as a share of the segment's movement


@dataclass(frozen=True)
class Integration:
    segments: tuple[Replay, ...]  # in order, each carried on from the one before
    anchors: tuple[Anchor, ...]  # re-measurements; the base weights are not among them
    measured_rows: int  # rows whose gradients were measured again

    @property
    def state(self) -> ReplayState:
        return self.segments[-1].state

    @property
    def delta(self) -> Vector:
        """Merged weight change after the last step, {name: [out, in]}."""
        return self.segments[-1].delta

    def delta_at(self, step: int) -> Vector:
        """Merged weight change once `step` steps are taken; `step` must be one of the snapshots."""
        return next(s for s in self.segments if step in s.snapshots).delta_at(step)


@dataclass(frozen=True)
class _MovingField:
    """Virtual batches about a mean that moves linearly with the distance travelled between two steps.

    The scatter of the batches is the base field's, so AdamW's second moment keeps the real run's noise.
    """

    batches: VirtualBatches
    travelled: Sequence[float]  # sum of learning rates before each step
    start: int
    stop: int
    first: Vector  # mean at `start`
    last: Vector  # mean at `stop`

    def gradient(self, step: int, name: str) -> Tensor:
        path = self.travelled[self.stop] - self.travelled[self.start]
        done = (self.travelled[step] - self.travelled[self.start]) / path if path else 0.0
        mean = torch.lerp(self.first[name], self.last[name], done)
        return mean.add_(self.batches.gradient(step, name)).sub_(self.batches.field.mean(name))


def segment_stops(rates: Sequence[float], segments: int) -> list[int]:
    """Steps that cut the run into segments of equal travel, the sum of learning rates; the last is the end."""
    travelled = [0.0, *accumulate(rates)]
    stops = [
        min(range(len(travelled)), key=lambda step: abs(travelled[step] - travelled[-1] * cut / segments))
        for cut in range(1, segments)
    ]
    return sorted({*stops, len(rates)} - {0})
