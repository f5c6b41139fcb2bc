"""Anchors: the gradient field measured again along the predicted path, and the recursion carried on over it.

A segment is predicted with the field extrapolated from the anchors behind it, the gradients of a few nodes
are measured at its predicted end, and the segment is replayed with the field interpolated to that end: a
predictor and a corrector with one measurement per segment (PEC; Hairer, Norsett & Wanner, Solving Ordinary
Differential Equations I, III.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from foretune.tasks.numerics.field import GradientField, VirtualBatches
from foretune.tasks.numerics.optimizers import OptimizerSettings
from foretune.tasks.numerics.replay import Adapter, Replay, ReplayState, initial_replay_state, replay
from foretune.tasks.numerics.vectors import Vector, axpy, dot, norm

SEGMENT_STEPS = 14  # over 12 steps two nodes hold (cosine 0.995), over 27 they do not
ENOUGH_NODES, ENOUGH_ROWS = 2, 16  # per anchor: what those two nodes were

# measure(delta, nodes): node sums of gradients, as GradientField.read gives them, at base weights + delta
Measure = Callable[[Vector, Sequence[int]], Sequence[Mapping[str, Tensor]]]


@dataclass(frozen=True)
class MeanEstimate:
    mean: Vector  # {name: [out, in]} gradient of the token-mean loss over all nodes
    carry: float  # share of a node's deviation from the mean that is left of the one at the base weights


def estimate_mean(field: GradientField, nodes: Sequence[int], measured: Sequence[Mapping[str, Tensor]]) -> MeanEstimate:
    """Mean gradient over the whole field from some nodes' gradients measured elsewhere: a control variate.

    mean(theta) ~ mean_S(theta) + carry * (mean(0) - mean_S(0)), with `carry` between 0 and 1: at 1 the subset
    tells the drift alone, at 0 the stored field is forgotten.
    """
    tokens = sum(field.tokens[node] for node in nodes)
    now = {name: sum(gradient[name].float() for gradient in measured) / tokens for name in field.names}
    carry = _single_carry(field, nodes[0], now) if len(nodes) == 1 else _carry(field, nodes, measured, now)
    for name, mean in now.items():
        mean.add_(field.mean(name) - field.group_mean(nodes, name), alpha=carry)
    return MeanEstimate(now, carry)


def _carry(field: GradientField, nodes: Sequence[int], measured: Sequence[Mapping[str, Tensor]], now: Vector) -> float:
    """Regression of the nodes' deviations from mean_S on those at the base weights, all weights together."""
    shared = spread = 0.0
    for name in field.names:
        base = field.group_mean(nodes, name)
        for node, gradient in zip(nodes, measured, strict=True):
            before = field.group_mean([node], name).sub_(base)
            shared += float((before * (gradient[name] / field.tokens[node] - now[name])).sum())
            spread += float(before.square().sum())
    return _within_unit(shared, spread)


def _single_carry(field: GradientField, node: int, now: Vector) -> float:
    """One node has no mean to deviate from: the same regression on what is orthogonal to the field's mean."""
    base = {name: field.group_mean([node], name) for name in field.names}
    mean = {name: field.mean(name) for name in field.names}
    along = dot(base, mean) / dot(mean, mean)
    before = axpy(-along, mean, base)
    return _within_unit(dot(before, now), dot(before, before))


def _within_unit(shared: float, spread: float) -> float:
    return min(1.0, max(0.0, shared / spread)) if spread > 0 else 0.0


@dataclass(frozen=True)
class Anchor:
    step: int  # optimiser steps taken where the field was measured again
    nodes: tuple[int, ...]  # nodes measured
    carry: float  # see MeanEstimate
    correction: float  # movement that the corrector changed, as a share of the segment's movement
    loss_change: float  # nats per training token since the base weights, by the path integral of the means


@dataclass(frozen=True)
class Integration:
    segments: tuple[Replay, ...]  # in order, each carried on from the one before
    anchors: tuple[Anchor, ...]  # re-measurements; the base weights are not among them
    measured_rows: int  # rows whose gradients were measured again

    @property
    def delta(self) -> Vector:
        """Merged weight change after the last step, {name: [out, in]}."""
        return self.segments[-1].delta

    def delta_at(self, step: int) -> Vector:
        """Merged weight change once `step` steps are taken; `step` must be one of the snapshots."""
        return next(segment for segment in self.segments if step in segment.snapshots).delta_at(step)


def integrate(
    batches: VirtualBatches,
    adapter: Adapter,
    settings: OptimizerSettings,
    rates: Sequence[float],
    measure: Measure,
    *,
    stops: Sequence[int],
    nodes_per_anchor: int,
    seed: int,
    snapshots: Collection[int] = (),
    keep: Callable[[int, Vector], None] | None = None,
) -> Integration:
    """Replays the run in segments that end at `stops`, measuring the field again at each predicted end.

    `keep` is given every stop and how far the mean gradient has moved there from that at the base weights.

    The measured nodes rotate through the field in a seeded order, so that what one subset gets wrong the
    next ones average out. Every stop costs `nodes_per_anchor` nodes. Raises ValueError when the stops do not
    rise to the end of the schedule, or there are fewer nodes than asked for.
    """
    field = batches.field
    if list(stops) != sorted({*stops} - {0}) or stops[-1] != len(rates):
        raise ValueError(f"stops {list(stops)} must rise from above 0 to {len(rates)}, the schedule's end")
    run = _Run(batches, adapter, settings, rates, tuple(snapshots))
    before = last = _Mean(0, {name: field.mean(name) for name in field.names})
    state, segments, anchors = initial_replay_state(adapter, settings), [], []
    here, loss_change = adapter.delta(state.parameters), 0.0
    for stop, nodes in zip(stops, rotation(field.nodes, nodes_per_anchor, len(stops), seed), strict=True):
        predicted = run.advance(state, last, run.extrapolated(before, last, stop)).delta
        estimate = estimate_mean(field, nodes, measure(predicted, nodes))
        before, last = last, _Mean(stop, estimate.mean)
        if keep is not None:
            keep(stop, {name: mean - field.mean(name) for name, mean in last.gradient.items()})
        segments.append(run.advance(state, before, last))
        state, start, here = segments[-1].state, here, segments[-1].delta
        moved = axpy(-1.0, start, here)
        loss_change += 0.5 * (dot(before.gradient, moved) + dot(last.gradient, moved))
        correction = norm(axpy(-1.0, predicted, here)) / max(norm(moved), 1e-30)
        anchors.append(Anchor(stop, nodes, estimate.carry, correction, loss_change))
    rows = sum(field.rows[node] for anchor in anchors for node in anchor.nodes)
    return Integration(tuple(segments), tuple(anchors), rows)


@dataclass(frozen=True)
class AnchorPlan:
    stops: tuple[int, ...]  # steps where the field is measured again; empty when the budget buys no node
    nodes_per_anchor: int


def trusted_travel(errors: Mapping[int, float], rates: Sequence[float], tolerance: float) -> float:
    """Share of the run's travel, its summed learning rates, over which the frozen field is good to `tolerance` nats.

    `errors` holds, by step, how far the loss predicted over the frozen field was from the evaluated one. It grows
    with the square of the travel, so that the first one beyond the tolerance says where it was passed.
    """
    travelled = [0.0, *accumulate(rates)]
    whole = travelled[-1] or 1.0  # a warm-up as long as the run travels nowhere
    trusted = 0.0
    for step in sorted(errors):
        reached, error = travelled[step] / whole, abs(errors[step])
        if not error <= tolerance:  # not a number is beyond any tolerance
            return max(trusted, reached * math.sqrt(tolerance / error)) if math.isfinite(error) else trusted
        trusted = reached
    return 1.0


def plan_anchors(
    field: GradientField, rates: Sequence[float], trusted: float, max_anchors: int, max_rows: int
) -> AnchorPlan:
    """As many segments as the base field, `trusted` over that share of the travel, asks for and `max_rows` rows pay.

    An anchor measures no more than ENOUGH_NODES nodes, or those that make ENOUGH_ROWS rows: a run that is trusted for
    long costs less than it may. Short of rows, a second node per anchor (one node has no mean to deviate from) goes
    before another segment, but no segment is longer than SEGMENT_STEPS or twice the trusted travel as long as there
    is a node for each. Cosine on SmolLM2 by the length of a segment in trusted travels: 1.6 0.94 (216 steps, 16
    segments of one node; 8 of two 0.79), 2 0.995 (48 steps, 4 of two), 4 0.92 and 7 0.82 (48 steps, all linear
    layers, 8 of one and 4 of two).
    """
    wanted = min(max_anchors, math.ceil(1 / trusted - 1e-9)) if trusted else max_anchors
    nodes = int(max_rows * field.nodes / sum(field.rows))
    if nodes < 1 or wanted < 1:
        return AnchorPlan((), 0)
    long = 1 / (2 * trusted) if trusted else math.inf
    segments = max(nodes // min(2, field.nodes), math.ceil(len(rates) / SEGMENT_STEPS), min(nodes, long), 1)
    stops = equal_travel(rates, min(wanted, nodes, int(segments)))
    enough = max(ENOUGH_NODES, math.ceil(ENOUGH_ROWS * field.nodes / sum(field.rows)))
    return AnchorPlan(tuple(stops), min(field.nodes, enough, max(1, nodes // len(stops))))


def equal_travel(rates: Sequence[float], segments: int) -> list[int]:
    """Steps that end segments of equal travel, the sum of learning rates; the last is the schedule's end.

    Fewer than `segments` when the run has too few steps.
    """
    travelled = [0.0, *accumulate(rates)]
    ends = [travelled[-1] * cut / segments for cut in range(1, segments)]
    return sorted({*steps_at(travelled, ends), len(rates)} - {0})


def steps_at(travelled: Sequence[float], travels: Sequence[float]) -> list[int]:
    """The steps that come nearest to having travelled so far; `travelled` is the travel before every step."""
    return [min(range(len(travelled)), key=lambda step: abs(travelled[step] - travel)) for travel in travels]


def rotation(nodes: int, size: int, rounds: int, seed: int) -> list[tuple[int, ...]]:
    """`size` distinct nodes per round, walking cyclically through one seeded order of all nodes."""
    if not 1 <= size <= nodes:
        raise ValueError(f"{size} nodes per anchor asked of a field of {nodes}: give between 1 and {nodes}")
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(seed)).tolist()
    return [tuple(order[(turn * size + i) % nodes] for i in range(size)) for turn in range(rounds)]


@dataclass(frozen=True)
class _Mean:
    step: int
    gradient: Vector


@dataclass(frozen=True)
class _Run:
    batches: VirtualBatches
    adapter: Adapter
    settings: OptimizerSettings
    rates: Sequence[float]
    snapshots: tuple[int, ...]

    @cached_property
    def travelled(self) -> list[float]:
        """Sum of learning rates before each step: the abscissa along which the mean gradient is a line."""
        return [0.0, *accumulate(self.rates)]

    def share(self, start: int, stop: int, step: int) -> float:
        """How far `step` lies on the way from `start` to `stop`; above one beyond it."""
        path = self.travelled[stop] - self.travelled[start]
        return (self.travelled[step] - self.travelled[start]) / path if path else 0.0

    def extrapolated(self, before: _Mean, last: _Mean, stop: int) -> _Mean:
        """The straight line through the last two means at `stop`; the last one while there is only one."""
        ahead = self.share(before.step, last.step, stop)
        if not ahead:
            return _Mean(stop, last.gradient)
        return _Mean(stop, {n: torch.lerp(before.gradient[n], g, ahead) for n, g in last.gradient.items()})

    def advance(self, state: ReplayState, start: _Mean, end: _Mean) -> Replay:
        """Replays from `start` to `end` with the mean on the line between them.

        The batches' scatter about the mean stays the base field's, so AdamW's second moment keeps the real
        run's noise.
        """

        def gradient(step: int, name: str) -> Tensor:
            share = self.share(start.step, end.step, step)
            mean = torch.lerp(start.gradient[name], end.gradient[name], share)
            return mean.add_(self.batches.gradient(step, name)).sub_(self.batches.field.mean(name))

        kept = [step for step in self.snapshots if start.step <= step <= end.step]
        return replay(gradient, self.adapter, self.settings, self.rates, start=state, stop=end.step, snapshots=kept)
