"""The predicted path of the weights and the loss along it, in three ways: over the gradients at the base weights
alone, over a field measured again at anchors, and over the gradient shifts that an earlier run's path stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from foretune.storage.events import EventLog
from foretune.tasks.prediction.evaluation import HeldOut, RowsAtWeights
from foretune.tasks.prediction.gradient_shifts import HELDOUT_SHIFT, TRAIN_SHIFT, ShiftFiles
from foretune.tasks.prediction.virtual_run import VirtualRun

if TYPE_CHECKING:
    from foretune.tasks.numerics.control_variate import MeanEstimate
    from foretune.tasks.numerics.factored import Gradient
    from foretune.tasks.numerics.field import GradientField
    from foretune.tasks.numerics.gradient_shift import GradientShift
    from foretune.tasks.numerics.integrator import Anchor, AnchorPlan, Integration, MeasuredAnchor
    from foretune.tasks.numerics.replay import Factors, Replay

LAST_EVALUATION = 0.75
"""No intermediate evaluation after this share of the cumulative learning rate: the final one is close enough."""


@dataclass(frozen=True)
class Trajectory:
    """The weight change at the end of the run, and the losses that were evaluated along the path."""

    delta: dict[str, Any]  # {name: [out, in]} after the last step, before clipping
    points: list[dict[str, Any]]  # step, predicted_loss, evaluated_loss, distance = |delta|; step 0 first
    anchor_steps: list[int]  # where gradients were measured; 0 is the base
    measured_rows: int  # rows whose gradients were measured again
    clipped_steps: int
    anchors: tuple[MeasuredAnchor, ...] = ()  # the re-measurements, none of the base
    factors: Factors = field(default_factory=dict)  # LoRA's A and B, whose scaled product is the delta


class Path(Protocol):
    """A path of the weights without measurements on the way."""

    def delta_at(self, step: int) -> dict[str, Any]: ...

    def factors_at(self, step: int) -> Factors: ...


class FrozenPath:
    """The path over base gradients alone, replayed no further than it is asked for; steps are asked for in order."""

    def __init__(self, virtual: VirtualRun) -> None:
        self._virtual = virtual
        self._replay: Replay | None = None
        self.clipped_steps = 0  # as far as it was replayed

    def delta_at(self, step: int) -> dict[str, Any]:
        start = self._replay and self._replay.state
        self._replay = self._virtual.replayed([step], start=start, stop=step)
        self.clipped_steps += len(self._replay.clipped_steps)
        return self._replay.delta_at(step)

    def factors_at(self, step: int) -> Factors:
        """At the last step that was asked for."""
        if self._replay is None:
            self.delta_at(step)
        assert self._replay is not None
        return self._replay.factors_at(step)


def frozen_gradient_trajectory(
    path: Path,
    steps: Sequence[int],
    heldout: HeldOut,
    events: EventLog,
    *,
    tolerance: float | None = None,
    known: Trajectory | None = None,
) -> Trajectory:
    """A path over base gradients alone, evaluated at `steps`. The predicted loss is first order: base loss +
    <base gradient, delta>.

    With a `tolerance` it ends at the first evaluation whose loss is further than that from the predicted one; with
    `known`, such a shorter trajectory, it continues from the end of that.
    """
    points = list(known.points) if known else [_point(0, heldout.base_loss, heldout.base_loss, {})]
    delta, reached = known.delta if known else {}, points[-1]["step"]
    for done, step in enumerate(steps, start=1):
        if step <= reached:
            continue
        delta = path.delta_at(step)
        predicted = heldout.base_loss + inner(heldout.base_gradient, delta)
        evaluated = heldout.rows.loss(delta)
        points.append(_point(step, predicted, evaluated, delta))
        events.emit("progress", task="path", done=done, total=len(steps))
        if tolerance is not None and not abs(predicted - evaluated) <= tolerance:  # nan is beyond any tolerance
            break
    reached = points[-1]["step"]
    return Trajectory(delta, points, [0], 0, 0, factors=path.factors_at(reached) if reached else {})


def anchored_trajectory(
    virtual: VirtualRun,
    plan: AnchorPlan,
    blocks: Sequence[RowsAtWeights],
    heldout: HeldOut,
    events: EventLog,
    shifts: ShiftFiles,
    most: int | None = None,
) -> Trajectory:
    """The path with the field measured again at the plan's anchor steps; `blocks` are the rows of its gradient blocks.
    The held-out rows are evaluated at every second of them, `most` at most.

    The predicted loss at an evaluation step is the evaluated loss at the one before plus the integral of the held-out
    gradient along the path between them. That gradient is taken as linear in the cumulative learning rate, so that
    the error comes from the third derivative of the loss along the path alone.
    """
    integration = _measured_at_anchors(virtual, plan, blocks, events, shifts)
    replay = integration.replay
    elapsed_lr, loss, gradient = virtual.elapsed_lr, heldout.base_loss, heldout.base_gradient
    points, delta = [_point(0, loss, loss, {})], {}
    for start, end in pairwise([0, *evaluated_anchors(plan.anchor_steps, most)]):
        reached = heldout.rows.gradients(replay.delta_at(end))
        ahead = {name: total / reached.tokens for name, total in reached.sums.items()}
        base = heldout.base_gradient
        shifts.write(HELDOUT_SHIFT, end, {name: less(mean, base[name]) for name, mean in ahead.items()})
        predicted = loss
        for last, step in pairwise([start, *(step for step in plan.anchor_steps if start < step <= end)]):
            before, delta = delta, replay.delta_at(step)
            moved = difference(delta, before)
            share = _share_of_middle(elapsed_lr, start, end, last, step)
            predicted += (1 - share) * inner(gradient, moved) + share * inner(ahead, moved)
        loss, gradient = reached.loss_sum / reached.tokens, ahead
        points.append(_point(end, predicted, loss, delta))
    anchor_steps, rows, clipped = [0, *plan.anchor_steps], integration.measured_rows, len(replay.clipped_steps)
    factors = replay.factors_at(plan.anchor_steps[-1])
    return Trajectory(dict(delta), points, anchor_steps, rows, clipped, integration.anchors, factors)


def _measured_at_anchors(
    virtual: VirtualRun, plan: AnchorPlan, blocks: Sequence[RowsAtWeights], events: EventLog, shifts: ShiftFiles
) -> Integration:
    """The recursion with the field measured again at every anchor; the shift of its mean is stored for later runs."""
    from foretune.tasks.numerics.integrator import Anchor, integrate

    optimizer, steps = virtual.training.optimizer_settings(), plan.anchor_steps
    run = integrate(
        virtual.batches(), virtual.adapter, optimizer, virtual.rates, plan, seed=virtual.training.seed, snapshots=steps
    )
    reached, field = next(run), virtual.field
    while isinstance(reached, Anchor):
        events.emit("progress", task="path", done=steps.index(reached.step) + 1, total=len(steps))
        estimate = _measured_mean(field, blocks, reached, plan.steady)
        shifts.write(TRAIN_SHIFT, reached.step, {n: less(mean, field.mean(n)) for n, mean in estimate.mean.items()})
        reached = run.send(estimate)
    return reached


def _measured_mean(field: GradientField, blocks: Sequence[RowsAtWeights], anchor: Anchor, steady: bool) -> MeanEstimate:
    """The mean at an anchor."""
    from foretune.tasks.numerics.control_variate import Measured, estimate_mean
    from foretune.tasks.numerics.steadied import steadied

    measured = []
    for portion in anchor.portions:
        block, whole = portion.block, blocks[portion.block]
        rows = whole.part(portion.first, portion.of)
        found = rows.gradients(anchor.delta)
        if rows is whole:
            measured.append(Measured.whole(field, block, found.sums))
        else:
            measured.append(Measured(block, found.sums, found.tokens, len(rows.trained)))
    estimate = estimate_mean(field, measured)
    return steadied(field, measured, estimate, anchor.mean) if steady else estimate


def evaluated_anchors(anchor_steps: Sequence[int], most: int | None = None) -> list[int]:
    """Every second anchor step, the last included: evaluating the held-out rows there costs as much as measuring a
    gradient block. Where that is above `most`, so many, evenly among the anchors."""
    wanted = (len(anchor_steps) + 1) // 2
    if most is None or wanted <= most:
        return list(anchor_steps[(len(anchor_steps) - 1) % 2 :: 2])
    return [anchor_steps[round(len(anchor_steps) * part / most) - 1] for part in range(1, most + 1)]


def trajectory_along_stored_path(
    virtual: VirtualRun, shift: GradientShift, heldout_shift: GradientShift, heldout: HeldOut, events: EventLog
) -> Trajectory:
    """The path over the base gradients plus their shift along an earlier run's path; no gradient is measured.

    The loss is evaluated where the earlier run evaluated its held-out rows, and at the end: where it differs from the
    predicted one, the earlier path does not serve. The predicted loss is again the last evaluated one plus the
    integral of the held-out gradient since.
    """
    from foretune.tasks.numerics.integrator import nearest_steps

    elapsed_lr, end = virtual.elapsed_lr, virtual.steps
    wanted = [elapsed for elapsed in heldout_shift.elapsed_lr if elapsed <= LAST_EVALUATION * elapsed_lr[-1]]
    evaluated = {*nearest_steps(elapsed_lr, wanted), end}
    anchors = nearest_steps(elapsed_lr, [elapsed for elapsed in shift.elapsed_lr if elapsed < elapsed_lr[-1]])
    cuts = sorted({*evaluated, *anchors} - {0})
    replay = virtual.replayed(cuts, shift)
    loss = predicted = heldout.base_loss
    points, delta = [_point(0, loss, loss, {})], {}
    for start, step in pairwise([0, *cuts]):
        before, delta = delta, replay.delta_at(step)
        moved, middle = difference(delta, before), (elapsed_lr[start] + elapsed_lr[step]) / 2
        predicted = loss_further(predicted, heldout.base_gradient, heldout_shift, middle, moved)
        if step in evaluated:
            loss = heldout.rows.loss(delta)
            points.append(_point(step, predicted, loss, delta))
            events.emit("progress", task="prediction", done=len(points) - 1, total=len(evaluated))
            predicted = loss
    return Trajectory(delta, points, [0], 0, len(replay.clipped_steps), factors=replay.factors_at(end))


def _point(step: int, predicted: float, evaluated: float, delta: Mapping[str, Gradient]) -> dict[str, Any]:
    from foretune.tasks.numerics.factored import distance

    return {"step": step, "predicted_loss": predicted, "evaluated_loss": evaluated, "distance": distance(delta)}


def loss_further(
    loss: float, base_gradient: Mapping[str, Any], shift: GradientShift, middle: float, moved: Mapping[str, Any]
) -> float:
    """`loss` plus <held-out gradient, moved>: that of the base weights and its shift at the cumulative learning rate
    `middle` of the movement."""
    loss += inner(base_gradient, moved)
    for name, change in moved.items():
        shifted = shift.at(middle, name)
        loss += 0.0 if shifted is None else inner({name: shifted}, {name: change})
    return loss


def difference(delta: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """delta - before; an empty `before` is zero."""
    return {name: less(change, before[name]) if before else change for name, change in delta.items()}


def less(one: Gradient, other: Gradient) -> Gradient:
    """one - other."""
    from foretune.tasks.numerics.factored import difference as of_two

    return of_two(one, other)


def _share_of_middle(elapsed_lr: Sequence[float], start: int, end: int, last: int, step: int) -> float:
    """Where the middle between the steps `last` and `step` lies between `start` (0) and `end` (1), in cumulative
    learning rate."""
    whole = elapsed_lr[end] - elapsed_lr[start]
    return ((elapsed_lr[last] + elapsed_lr[step]) / 2 - elapsed_lr[start]) / whole if whole else 0.5


def inner(gradient: Mapping[str, Any], delta: Mapping[str, Any]) -> float:
    """<gradient, delta> over the weights of `delta`."""
    from foretune.tasks.numerics.factored import Factored
    from foretune.tasks.numerics.factored import inner as of_factors

    total = 0.0
    for name, change in delta.items():
        one = gradient[name]
        if isinstance(one, Factored) or isinstance(change, Factored):
            total += of_factors(one.to(change.device), change)
        else:
            total += float((one.to(change) * change).sum())
    return total


def evaluation_steps(steps: int, points: int) -> list[int]:
    """Up to `points` evenly spaced steps at which the path is evaluated; the last is the run's end."""
    return sorted({round(steps * point / points) for point in range(1, points + 1)} - {0})
