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
