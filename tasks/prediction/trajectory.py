"""The predicted path of the weights, and the loss along it: one anchor, or the field measured again on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from foretune.storage.events import EventLog
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.inputs.adapted import AdaptedModel, gradient_field
from foretune.tasks.inputs.field import row_gradients
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import undecayed_weights
from foretune.tasks.prediction.evaluation import RowsAtWeights

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.drift import Drift
    from foretune.tasks.numerics.field import GradientField, VirtualBatches
    from foretune.tasks.numerics.integrator import AnchorPlan, Integration
    from foretune.tasks.numerics.replay import Adapter, Replay
    from foretune.tasks.numerics.row_gradients import RowGradients


DRIFT, HELDOUT_DRIFT = "drift", "heldout_drift"
"""Of the mean gradient of the training rows, and of the held-out ones."""

Keep = Callable[[str, int, "dict[str, Tensor]"], None]
"""keep(DRIFT or HELDOUT_DRIFT, step, how far the mean gradient has moved from that at the base weights)"""


@dataclass(frozen=True)
class Trajectory:
    """Where the weights end, and what forward passes found on the way."""

    delta: dict[str, Tensor]  # {name: [out, in]} after the last step, before clipping
    points: list[dict[str, Any]]  # step, predicted_loss, evaluated_loss, distance = |delta|; step 0 first
    anchor_steps: list[int]  # where gradients were measured; 0 is the base
    measured_rows: int  # rows whose gradients were measured again
    clipped_steps: int


@dataclass(frozen=True)
class VirtualRun:
    """The run that is predicted: its schedule, its optimizer and the measured field it is advanced over."""

    adapter: Adapter
    field: GradientField
    training: TrainingSettings
    steps: int
    detail: RowGradients | None = None  # the rows' own gradients, where they are stored for this adapter
    paired: bool = False  # whether the run is a DPO run, whose trainer averages over micro-batches

    @property
    def rates(self) -> list[float]:
        """Learning rate of every step."""
        return self.training.rates(sum(self.field.rows))

    @property
    def travelled(self) -> list[float]:
        """The sum of the learning rates before every step, and after the last."""
        return [0.0, *accumulate(self.rates)]

    def replayed(self, at: Sequence[int], drift: Drift | None = None) -> Replay:
        """The optimizer's recursion over the frozen field, kept at the steps `at`; with `drift` the field's mean
        moves as it did along a path measured before."""
        from foretune.tasks.numerics.replay import replay

        batches, travelled = self.batches(), self.travelled

        def gradient(step: int, name: str) -> Tensor:
            drawn, moved = batches.gradient(step, name), drift and drift.at(travelled[step], name)
            return drawn if moved is None else moved.add_(drawn)

        optimizer = self.training.optimizer_settings()
        return replay(gradient, self.adapter, optimizer, self.rates, snapshots=at)

    def integrated(
        self, stops: Sequence[int], nodes_per_anchor: int, measure: Any, keep: Callable[[int, dict[str, Tensor]], None]
    ) -> Integration:
        """The recursion with the field measured again at the predicted weights of every stop.

        `keep` is given every stop and how far the mean gradient has moved there.
        """
        from foretune.tasks.numerics.integrator import integrate

        return integrate(
            self.batches(),
            self.adapter,
            self.training.optimizer_settings(),
            self.rates,
            measure,
            stops=stops,
            nodes_per_anchor=nodes_per_anchor,
            seed=self.training.seed,
            snapshots=stops,
            keep=keep,
        )

    def batches(self) -> VirtualBatches:
        """The gradient of every step's batch: the trainer's own batches where the rows are known, else nodes."""
        from foretune.tasks.numerics.field import virtual_batches
        from foretune.tasks.numerics.orders import row_shares, trainer_steps

        training, detail = self.training, self.detail
        batches = virtual_batches(self.field, training.rows_per_step, self.steps, training.seed)
        if detail is None:
            return batches
        size, accumulated = training.batch_size, training.gradient_accumulation_steps
        steps = trainer_steps(len(detail.tokens), size, accumulated, self.steps, training.seed)
        shares = tuple(row_shares(step, detail.tokens, by_micro_batch=self.paired) for step in steps)
        return replace(batches, detail=detail, shares=shares)


def virtual_run(
    run: Run, nodes: list[ArtifactRef], adapted: AdaptedModel, training: TrainingSettings, *, paired: bool
) -> VirtualRun:
    """The run that is predicted, over the stored gradient field."""
    field = gradient_field(run, nodes, adapted)
    detail = row_gradients(run, nodes, adapted)
    return VirtualRun(moving_adapter(adapted), field, training, training.steps(sum(field.rows)), detail, paired)


def moving_adapter(adapted: AdaptedModel) -> Adapter:
    """The adapter as the recursion moves it: both LoRA factors, or the weights themselves.

    The Trainer decays both factors, but neither norms nor biases.
    """
    from foretune.tasks.numerics.replay import FullAdapter, LoraAdapter
    from foretune.tasks.numerics.spaces import LoraSpace

    if isinstance(adapted.space, LoraSpace):
        outputs = {name: weight.shape[0] for name, weight in adapted.weights.items()}
        return LoraAdapter(adapted.space.A, adapted.space.scale, outputs)
    return FullAdapter(adapted.weights, undecayed_weights(adapted.loaded.model))


def single_anchor(
    path: Any,
    at: Sequence[int],
    rows: RowsAtWeights,
    base: tuple[float, dict[str, Tensor]],
    events: EventLog,
    *,
    tolerance: float | None = None,
    known: Trajectory | None = None,
) -> Trajectory:
    """A path from base gradients alone. Predicted loss is first order: base loss + <gradient, delta>, of `base`.

    It is followed through the steps `at`, with a `tolerance` up to the first of them where prediction and evaluation
    part by more than that, and on from where the trajectory `known` left it.
    """
    from foretune.tasks.numerics.vectors import norm

    loss, gradient = base
    points = list(known.points) if known else [_base_point(loss)]
    delta, reached = known.delta if known else {}, points[-1]["step"]
    for done, step in enumerate(at, start=1):
        if step <= reached:
            continue
        delta = path.delta_at(step)
        predicted = loss + inner(gradient, delta)
        evaluated = rows.loss(delta)
        points.append({"step": step, "predicted_loss": predicted, "evaluated_loss": evaluated, "distance": norm(delta)})
        events.emit("progress", task="path", done=done, total=len(at))
        if tolerance is not None and not abs(predicted - evaluated) <= tolerance:  # nan is beyond any tolerance
            break
    return Trajectory(delta, points, [0], 0, len(getattr(path, "clipped_steps", ())))


def _base_point(loss: float) -> dict[str, Any]:
    return {"step": 0, "predicted_loss": loss, "evaluated_loss": loss, "distance": 0.0}


def anchored(
    virtual: VirtualRun,
    stops: Sequence[int],
    nodes_per_anchor: int,
    node_rows: Sequence[RowsAtWeights],
    heldout: RowsAtWeights,
    base: tuple[float, dict[str, Tensor]],
    events: EventLog,
    keep: Keep,
) -> Trajectory:
    """The path with anchors at `stops`; `base` is the held-out loss and gradient at the base weights.

    `keep` is given what moved from the base weights' on: at every stop the mean gradient of the training rows, and
    wherever the held-out rows are looked at, theirs.

    The held-out rows are looked at on every second stop, the last included: there they cost as much as the node that
    the stop is for. The predicted loss is the last point's evaluated loss plus the integral of the held-out gradient
    along the path since, taken as linear in the travel, so that it errs by the third derivative of the path alone.
    """
    from foretune.tasks.numerics.vectors import norm

    done = 0

    def measure(delta: dict[str, Tensor], nodes: Sequence[int]) -> list[dict[str, Tensor]]:
        nonlocal done
        done += 1
        events.emit("progress", task="path", done=done, total=len(stops))
        return [node_rows[node].gradients(delta).sums for node in nodes]

    integration = virtual.integrated(stops, nodes_per_anchor, measure, partial(keep, DRIFT))
    travelled = virtual.travelled
    loss, gradient = base
    points = [_base_point(loss)]
    delta: dict[str, Tensor] = {}
    for start, stop in pairwise([0, *stops[::-2][::-1]]):
        reached = heldout.gradients(integration.delta_at(stop))
        ahead = {name: total / reached.tokens for name, total in reached.sums.items()}
        keep(HELDOUT_DRIFT, stop, {name: mean - base[1][name].to(mean) for name, mean in ahead.items()})
        predicted, last = loss, start
        for step in (step for step in stops if start < step <= stop):
            before, delta = delta, integration.delta_at(step)
            moved = {name: change - before[name] if before else change for name, change in delta.items()}
            share = _middle(travelled, start, stop, last, step)
            predicted += (1 - share) * inner(gradient, moved) + share * inner(ahead, moved)
            last = step
        loss, gradient = reached.loss_sum / reached.tokens, ahead
        points.append({"step": stop, "predicted_loss": predicted, "evaluated_loss": loss, "distance": norm(delta)})
    clipped = sum(len(segment.clipped_steps) for segment in integration.segments)
    return Trajectory(delta, points, [0, *stops], integration.measured_rows, clipped)


LAST_LOOK = 0.75
"""Share of the travel beyond which the look at the end of a followed path stands for one on the way."""


def along(
    virtual: VirtualRun,
    drift: Drift,
    heldout_drift: Drift,
    heldout: RowsAtWeights,
    base: tuple[float, dict[str, Tensor]],
    events: EventLog,
) -> Trajectory:
    """The path over gradients that drift as they did along an earlier run's path; no gradient is measured.

    The loss is evaluated where the earlier run looked at its held-out rows, and at the end: where it parts from the
    predicted one, the earlier path does not serve. The predicted loss is again the last evaluated one plus the
    integral of the held-out gradient since.
    """
    from foretune.tasks.numerics.integrator import steps_at
    from foretune.tasks.numerics.vectors import norm

    travelled, end = virtual.travelled, virtual.steps
    looks = {*steps_at(travelled, [t for t in heldout_drift.travels if t <= LAST_LOOK * travelled[-1]]), end}
    cuts = sorted({*looks, *steps_at(travelled, [t for t in drift.travels if t < travelled[-1]])} - {0})
    replay = virtual.replayed(cuts, drift)
    loss, gradient = base
    points, predicted, delta = [_base_point(loss)], loss, {}
    for start, step in pairwise([0, *cuts]):
        before, delta = delta, replay.delta_at(step)
        moved = {name: change - before[name] if before else change for name, change in delta.items()}
        middle = (travelled[start] + travelled[step]) / 2
        predicted += inner(gradient, moved)
        for name, change in moved.items():
            ahead = heldout_drift.at(middle, name)
            predicted += 0.0 if ahead is None else float((ahead * change).sum())
        if step in looks:
            loss = heldout.loss(delta)
            size = norm(delta)
            points.append({"step": step, "predicted_loss": predicted, "evaluated_loss": loss, "distance": size})
            events.emit("progress", task="prediction", done=len(points) - 1, total=len(looks))
            predicted = loss
    return Trajectory(delta, points, [0], 0, len(replay.clipped_steps))


def _middle(travelled: Sequence[float], start: int, stop: int, last: int, step: int) -> float:
    """How far the middle of the steps from `last` to `step` lies on the way from `start` to `stop`, in travel."""
    whole = travelled[stop] - travelled[start]
    return ((travelled[last] + travelled[step]) / 2 - travelled[start]) / whole if whole else 0.5


def inner(gradient: dict[str, Tensor], delta: dict[str, Tensor]) -> float:
    """<gradient, delta> over the weights of `delta`."""
    return sum(float((gradient[name].to(d) * d).sum()) for name, d in delta.items())


def planned_anchors(
    virtual: VirtualRun, trusted: float, anchors: int | str, max_anchors: int, budget: float, passes: float
) -> AnchorPlan | None:
    """Where to measure again, and how many nodes each time; None where one anchor is all that is paid for.

    With `auto`, segments are as long as the single anchor was `trusted`, a share of the travel, and all measured rows
    together, the base field's included, stay within `budget` of the real run's gradient samples and within `passes`
    more passes over the rows, so that the cost of a long run does not grow with its epochs. A number of anchors is
    kept to, with one node each where the budget allows no more.
    """
    from foretune.tasks.numerics.integrator import AnchorPlan, equal_travel, plan_anchors

    field, rows = virtual.field, sum(virtual.field.rows)
    spare = max(0, min(int(budget * rows * virtual.training.epochs) - rows, int(passes * rows)))
    if anchors == "auto":
        plan = plan_anchors(field, virtual.rates, trusted, max_anchors - 1, spare)
        return plan if plan.stops else None
    stops = tuple(equal_travel(virtual.rates, int(anchors) - 1))
    nodes = int(spare * field.nodes / rows / len(stops))
    return AnchorPlan(stops, min(field.nodes, max(1, nodes)))


def path_steps(steps: int, points: int) -> list[int]:
    """Steps at which the path is looked at; the last is the run's end."""
    return sorted({round(steps * point / points) for point in range(1, points + 1)} - {0})


def path_summary(points: list[dict[str, Any]], tolerance: float) -> dict[str, Any]:
    """First and last losses, and the horizon: the first step where prediction and evaluation part."""
    parted = [p["step"] for p in points if abs(p["predicted_loss"] - p["evaluated_loss"]) > tolerance]
    last = points[-1]
    trusted = max((p["step"] for p in points if not parted or p["step"] < parted[0]), default=0)
    return {
        "heldout_loss_base": points[0]["evaluated_loss"],
        "heldout_loss_predicted": last["predicted_loss"],
        "heldout_loss_evaluated": last["evaluated_loss"],
        "horizon": parted[0] if parted else None,
        "trusted_steps": trusted,
        "trust": "whole run" if not parted else f"up to step {trusted} of {last['step']}",
        "tolerance": tolerance,
    }
