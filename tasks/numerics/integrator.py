"""Anchors: the gradient field measured again along the predicted path, and the recursion continued over it.

A segment is predicted with the mean on the line through the last two, or held at the last, whichever came nearer to
what was measured at the last anchor; the gradients of a few blocks are measured at its predicted end, and the segment
is replayed with the mean interpolated to that end: a predictor and a corrector with one measurement per segment (PEC;
Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, III.1). Between anchors the mean gradient is
linear in the cumulative learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

from foretune.tasks.numerics.control_variate import MeanEstimate
from foretune.tasks.numerics.factored import Gradients, axpy, difference, distance, dot, lerp
from foretune.tasks.numerics.field import GradientField, VirtualBatches
from foretune.tasks.numerics.optimizers import OptimizerSettings
from foretune.tasks.numerics.products import Multiplicand, between
from foretune.tasks.numerics.replay import Adapter, Replay, ReplayState, initial_replay_state, replay

SEGMENT_STEPS = 14  # over 12 steps two blocks are enough (cosine 0.995), over 27 they are not
FEWEST_SEGMENTS = 3  # 24 steps trusted for half of them: cosine 0.996 over three, 0.974 over two on more rows
LARGEST_GROWTH = 4.0
"""Of segments. Cosine of all linear layers over 48 steps, whose base is trusted for 3 % of them, in nine segments:
equal 0.924, growing to 2.7 times the first 0.952, to 4 times 0.980. Of the run of 216 steps, trusted longer: 0.956 of
equal ones, 0.937 of those that grow to 4 times."""
ENOUGH_BLOCKS, ENOUGH_ROWS = 2, 16  # per anchor: the size of those two blocks


@dataclass(frozen=True)
class AnchorPlan:
    anchor_steps: tuple[int, ...]  # steps where the field is measured again; empty when the budget buys no block
    blocks_per_anchor: int
    steady: bool = False  # whether means are held until the next is measured, and taken for what stands out of noise
    portions: int = 1  # of a block, one of which is measured at an anchor


@dataclass(frozen=True)
class Portion:
    """Rows of a gradient block that are measured together: every `of`-th, from `first` on."""

    block: int
    first: int = 0
    of: int = 1


@dataclass(frozen=True)
class Anchor:
    """A point of the predicted path at which the field is to be measured again."""

    step: int  # optimiser steps taken
    delta: Gradients  # predicted weight change there
    portions: tuple[Portion, ...]  # to measure
    mean: Gradients  # as it was predicted


@dataclass(frozen=True)
class MeasuredAnchor:
    step: int  # optimiser steps taken where the field was measured again
    blocks: tuple[int, ...]  # gradient blocks measured
    coefficient: float  # see MeanEstimate
    correction: float  # movement that the corrector changed, as a share of the segment's movement
    gain: float  # see MeanEstimate
    loss_change: float  # nats per training token since the base weights, by the path integral of the means


@dataclass(frozen=True)
class Integration:
    replay: Replay  # of the whole run
    anchors: tuple[MeasuredAnchor, ...]  # re-measurements; the base weights are not among them
    measured_rows: int  # rows whose gradients were measured again


def integrate(
    batches: VirtualBatches,
    adapter: Adapter,
    settings: OptimizerSettings,
    rates: Sequence[float],
    plan: AnchorPlan,
    *,
    seed: int,
    snapshots: Collection[int] = (),
) -> Generator[Anchor | Integration, MeanEstimate, None]:
    """Replays the run in segments that end at the plan's anchor steps, with the field measured again at each.

    Yields every anchor, to be sent the mean gradient that was measured there, and last of all the integration:

        reached = next(run)
        while isinstance(reached, Anchor):
            reached = run.send(estimate_mean(field, measured(reached)))

    The measured portions rotate through the field in a seeded order, so that what one subset gets wrong the
    next ones average out. Raises ValueError when the anchor steps do not rise to the end of the schedule, or the
    field has fewer blocks than the plan measures at once.
    """
    field, steps = batches.field, plan.anchor_steps
    if list(steps) != sorted({*steps} - {0}) or steps[-1] != len(rates):
        raise ValueError(f"anchor steps {list(steps)} must rise from above 0 to {len(rates)}, the schedule's end")
    run = _Run(batches, adapter, settings, rates)
    before = last = _Mean(0, {name: field.mean(name) for name in field.names})
    state, anchors, clipped = initial_replay_state(adapter, settings), [], []
    kept: dict[int, dict[str, torch.Tensor]] = {}
    here, loss_change = adapter.delta(state.parameters), 0.0
    turns = rotation(field.blocks, plan.blocks_per_anchor, len(steps), seed, plan.portions)
    rows, straight = 0, True
    for step, portions in zip(steps, turns, strict=True):
        held = _Mean(step, last.gradient)
        line = held if plan.steady else run.extrapolated(before, last, step)
        ahead = line if straight else held
        predicted = run.advance(state, last, ahead).delta
        estimate = yield Anchor(step, predicted, portions, ahead.gradient)
        if line is not held and before.step < last.step:
            straight = _apart(line, estimate.mean) < _apart(held, estimate.mean)
        before, last = last, _Mean(step, estimate.mean)
        segment = run.advance(state, before, last, snapshots)
        kept |= segment.snapshots
        clipped += segment.clipped_steps
        state, start, here = segment.state, here, segment.delta
        moved = axpy(-1.0, start, here)
        loss_change += 0.5 * (dot(before.gradient, moved) + dot(last.gradient, moved))
        correction = distance(axpy(-1.0, predicted, here)) / max(distance(moved), 1e-30)
        blocks, rows = tuple(portion.block for portion in portions), rows + estimate.rows
        anchors.append(MeasuredAnchor(step, blocks, estimate.coefficient, correction, estimate.gain, loss_change))
    yield Integration(Replay(state, kept, tuple(clipped), adapter), tuple(anchors), rows)


def trusted_share(errors: Mapping[int, float], rates: Sequence[float], tolerance: float) -> float:
    """Share of the run's cumulative learning rate over which the frozen field is good to `tolerance` nats.

    `errors` holds, by step, how far the loss predicted over the frozen field was from the evaluated one. The error
    grows with the square of the cumulative learning rate, so the first one beyond the tolerance tells where the
    tolerance was passed.
    """
    elapsed_lr = [0.0, *accumulate(rates)]
    whole = elapsed_lr[-1] or 1.0  # a warm-up as long as the run has no learning rate at all
    trusted = 0.0
    for step in sorted(errors):
        reached, error = elapsed_lr[step] / whole, abs(errors[step])
        if not error <= tolerance:  # not a number is beyond any tolerance
            return max(trusted, reached * math.sqrt(tolerance / error)) if math.isfinite(error) else trusted
        trusted = reached
    return 1.0


def plan_anchors(
    field: GradientField,
    rates: Sequence[float],
    trusted: float,
    max_anchors: int,
    max_rows: int,
    *,
    to_the_last: bool = False,
    portions: int = 1,
) -> AnchorPlan:
    """As many segments as a base field that is `trusted` over that share of the run needs and `max_rows` rows pay for,
    three where they pay for three.

    An anchor measures no more than ENOUGH_BLOCKS blocks, or those that make ENOUGH_ROWS rows: a run that is trusted
    for long costs less than it may. Short of rows, a second block per anchor (one block has no mean to deviate from)
    goes before a fourth segment, but no segment is longer than SEGMENT_STEPS or twice the trusted share as long as
    there is a block for each. Cosine on SmolLM2 by the length of a segment in trusted shares: 1.6 0.94 (216 steps, 16
    segments of one block; 8 of two 0.79), 2 0.995 (48 steps, 4 of two), 4 0.92 and 7 0.82 (48 steps, all linear
    layers, 8 of one and 4 of two).
    With `to_the_last` all that is paid for is measured, at as many anchors as leave the fewest blocks over, where the
    rule above leaves almost half of them, and along a steady path: the straight line through two means of few rows
    leads astray by twice their noise. Its segments are equal: late in a run noise is more of what few rows tell. They
    are no longer than SEGMENT_STEPS as long as there are two blocks for each (1,680 rows along 375 steps: cosine 0.934
    at 12 anchors, 0.962 at 27). Of several `portions` of a block each counts for a block of its own.
    """
    wanted = min(max_anchors, max(FEWEST_SEGMENTS, math.ceil(1 / trusted - 1e-9))) if trusted else max_anchors
    blocks = int(max_rows * field.blocks * portions / sum(field.rows))
    if blocks < 1 or wanted < 1:
        return AnchorPlan((), 0)
    long, by_length = 1 / (2 * trusted) if trusted else math.inf, math.ceil(len(rates) / SEGMENT_STEPS)
    if to_the_last:
        wanted = max(wanted, min(max_anchors, by_length, blocks // ENOUGH_BLOCKS))
        segments = _least_left_over(blocks, wanted)
    else:
        fewest = min(blocks, FEWEST_SEGMENTS)
        segments = max(blocks // min(2, field.blocks), by_length, min(blocks, long), fewest)
    count = min(wanted, blocks, int(segments))
    steps = growing_segments(rates, count, 1.0 if to_the_last else _growth(count, trusted))
    enough = max(ENOUGH_BLOCKS, math.ceil(ENOUGH_ROWS * field.blocks / sum(field.rows)))
    each = min(field.blocks, field.blocks if to_the_last else enough, max(1, blocks // len(steps)))
    return AnchorPlan(tuple(steps), each, to_the_last, portions)


def _least_left_over(blocks: int, most: int) -> int:
    """How many anchors, at most `most` and half of that at least, share the blocks evenly with the fewest left over."""
    most = min(blocks, most)
    return max(range(math.ceil(most / 2), most + 1), key=lambda anchors: (anchors * (blocks // anchors), anchors))


def _growth(segments: int, trusted: float) -> float:
    """How often the last segment holds the first in cumulative learning rate: once where equal ones are up to twice as
    long as the base is trusted, LARGEST_GROWTH times where they are three times as long."""
    return min(LARGEST_GROWTH, max(1.0, LARGEST_GROWTH ** (1 / (trusted * segments) - 2))) if trusted else 1.0


def equal_segments(rates: Sequence[float], segments: int) -> list[int]:
    """`growing_segments` of equal cumulative learning rate."""
    return growing_segments(rates, segments, 1.0)


def growing_segments(rates: Sequence[float], segments: int, growth: float) -> list[int]:
    """Steps that end segments of cumulative learning rates in a geometric series, the last `growth` times the first;
    the last is the schedule's end.

    Fewer than `segments` when the run has too few steps.
    """
    elapsed_lr = [0.0, *accumulate(rates)]
    lengths = [growth ** (cut / max(segments - 1, 1)) for cut in range(segments)]
    ends = [elapsed_lr[-1] * reached / sum(lengths) for reached in list(accumulate(lengths))[:-1]]
    return sorted({*nearest_steps(elapsed_lr, ends), len(rates)} - {0})


def nearest_steps(elapsed_lr: Sequence[float], wanted: Sequence[float]) -> list[int]:
    """For each wanted cumulative learning rate the step nearest to it; `elapsed_lr` is the one before every step."""
    return [min(range(len(elapsed_lr)), key=lambda step: abs(elapsed_lr[step] - each)) for each in wanted]


def rotation(blocks: int, size: int, rounds: int, seed: int, of: int = 1) -> list[tuple[Portion, ...]]:
    """A portion of each of `size` distinct blocks per round, walking cyclically through one seeded order of all blocks,
    through the first portions before the second."""
    if not 1 <= size <= blocks:
        raise ValueError(f"{size} blocks per anchor asked of a field of {blocks}: give between 1 and {blocks}")
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    turns = [range(turn * size, (turn + 1) * size) for turn in range(rounds)]
    return [tuple(Portion(order[at % blocks], at // blocks % of, of) for at in turn) for turn in turns]


@dataclass(frozen=True)
class _Mean:
    step: int
    gradient: Gradients


def _apart(mean: _Mean, other: Gradients) -> float:
    """Over all weights, of which one is in memory at a time."""
    return math.hypot(*(distance({name: difference(each, mean.gradient[name])}) for name, each in other.items()))


@dataclass(frozen=True)
class _Run:
    batches: VirtualBatches
    adapter: Adapter
    settings: OptimizerSettings
    rates: Sequence[float]

    @cached_property
    def elapsed_lr(self) -> list[float]:
        """Cumulative learning rate before each step: the abscissa in which the mean gradient is linear."""
        return [0.0, *accumulate(self.rates)]

    def share(self, start: int, end: int, step: int) -> float:
        """Where `step` lies between `start` (0) and `end` (1) in cumulative learning rate; above one beyond it."""
        whole = self.elapsed_lr[end] - self.elapsed_lr[start]
        return (self.elapsed_lr[step] - self.elapsed_lr[start]) / whole if whole else 0.0

    def extrapolated(self, before: _Mean, last: _Mean, step: int) -> _Mean:
        """The straight line through the last two means at `step`; the last one while there is only one."""
        ahead = self.share(before.step, last.step, step)
        if not ahead:
            return _Mean(step, last.gradient)
        return _Mean(step, {n: lerp(before.gradient[n], g, ahead) for n, g in last.gradient.items()})

    def advance(self, state: ReplayState, start: _Mean, end: _Mean, snapshots: Collection[int] = ()) -> Replay:
        """Replays from `start` to `end` with the mean on the line between them, and keeps those of the snapshots that
        lie in it; its beginning is the end of the one before.

        The batches' scatter about the mean stays the base field's, so AdamW's second moment keeps the real
        run's noise.
        """

        def gradient(step: int, name: str) -> Multiplicand:
            share = self.share(start.step, end.step, step)
            return self.batches.about(between(start.gradient[name], end.gradient[name], share), step, name)

        kept = [step for step in snapshots if start.step < step <= end.step or step == 0 == start.step]
        return replay(gradient, self.adapter, self.settings, self.rates, start=state, stop=end.step, snapshots=kept)
