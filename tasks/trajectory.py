"""The predicted path of the weights, and the loss along it: one anchor, or the field measured again on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from storage.events import EventLog
from tasks.adapted import AdaptedModel
from tasks.evaluation import RowsAtWeights
from tasks.loading import undecayed_weights
from tasks.training import TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.numerics.field import GradientField, VirtualBatches
    from tasks.numerics.integrator import AnchorPlan, Integration
    from tasks.numerics.replay import Adapter, Replay
    from tasks.numerics.row_gradients import RowGradients


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
        from tasks.numerics.schedules import learning_rates

        training, rows = self.training, sum(self.field.rows)
        warmup = training.warmup_steps(rows)
        return learning_rates(training.lr_scheduler_type, training.learning_rate, self.steps, warmup)

    def replayed(self, at: Sequence[int]) -> Replay:
        """The optimizer's recursion over the frozen field, kept at the steps `at`."""
        from tasks.numerics.replay import replay

        optimizer = self.training.optimizer_settings()
        return replay(self.batches().gradient, self.adapter, optimizer, self.rates, snapshots=at)

    def integrated(self, stops: Sequence[int], nodes_per_anchor: int, measure: Any) -> Integration:
        """The recursion with the field measured again at the predicted weights of every stop."""
        from tasks.numerics.integrator import integrate

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
        )

    def batches(self) -> VirtualBatches:
        """The gradient of every step's batch: the trainer's own batches where the rows are known, else nodes."""
        from tasks.numerics.field import virtual_batches
        from tasks.numerics.orders import row_shares, trainer_steps

        training, detail = self.training, self.detail
        batches = virtual_batches(self.field, training.rows_per_step, self.steps, training.seed)
        if detail is None:
            return batches
        size, accumulated = training.batch_size, training.gradient_accumulation_steps
        steps = trainer_steps(len(detail.tokens), size, accumulated, self.steps, training.seed)
        shares = tuple(row_shares(step, detail.tokens, by_micro_batch=self.paired) for step in steps)
        return replace(batches, detail=detail, shares=shares)


def moving_adapter(adapted: AdaptedModel) -> Adapter:
    """The adapter as the recursion moves it: both LoRA factors, or the weights themselves.

    The Trainer decays both factors, but neither norms nor biases.
    """
    from tasks.numerics.replay import FullAdapter, LoraAdapter
    from tasks.numerics.spaces import LoraSpace

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
    from tasks.numerics.vectors import norm

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
        events.emit("progress", task="prediction", done=done, total=len(at))
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
) -> Trajectory:
    """The path with anchors at `stops`; `base` is the held-out loss and gradient at the base weights.

    The held-out rows are looked at on every second stop, the last included: there they cost as much as the node that
    the stop is for. The predicted loss is the last point's evaluated loss plus the integral of the held-out gradient
    along the path since, taken as linear in the travel, so that it errs by the third derivative of the path alone.
    """
    from tasks.numerics.vectors import norm

    done = 0

    def measure(delta: dict[str, Tensor], nodes: Sequence[int]) -> list[dict[str, Tensor]]:
        nonlocal done
        done += 1
        events.emit("progress", task="prediction", done=done, total=len(stops))
        return [node_rows[node].gradients(delta).sums for node in nodes]

    integration = virtual.integrated(stops, nodes_per_anchor, measure)
    travelled = [0.0, *accumulate(virtual.rates)]
    loss, gradient = base
    points = [_base_point(loss)]
    delta: dict[str, Tensor] = {}
    for start, stop in pairwise([0, *stops[::-2][::-1]]):
        reached = heldout.gradients(integration.delta_at(stop))
        ahead = {name: total / reached.tokens for name, total in reached.sums.items()}
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
    from tasks.numerics.integrator import AnchorPlan, equal_travel, plan_anchors

    field, rows = virtual.field, sum(virtual.field.rows)
    spare = max(0, min(int(budget * rows * virtual.training.epochs) - rows, int(passes * rows)))
    if anchors == "auto":
        plan = plan_anchors(field, virtual.rates, trusted, max_anchors - 1, spare)
        return plan if plan.stops else None
    stops = tuple(equal_travel(virtual.rates, int(anchors) - 1))
    nodes = int(spare * field.nodes / rows / len(stops))
    return AnchorPlan(stops, min(field.nodes, max(1, nodes)))
