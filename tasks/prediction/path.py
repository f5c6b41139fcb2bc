"""Pass 3a: the path of the weights that the requested run would take, with the gradients measured along it.

It is an artefact of its own, so that a similar run (another rate, a few rows fewer) can be predicted along it: see
`foretune.tasks.prediction.earlier_path`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from foretune.storage.events import EventLog
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.adapter_factors import write_factors
from foretune.tasks.inputs.factors import RECORD, mean_gradients, settings_of
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.numerics.ranks import SHIFT_RANKS
from foretune.tasks.prediction.earlier_path import sketch
from foretune.tasks.prediction.evaluation import HeldOut, RowsAtWeights, loss_at_base
from foretune.tasks.prediction.gradient_shifts import ShiftFiles
from foretune.tasks.prediction.horizon import path_summary
from foretune.tasks.prediction.settings import PathSettings
from foretune.tasks.prediction.trajectory import (
    FrozenPath,
    Trajectory,
    anchored_trajectory,
    evaluation_steps,
    frozen_gradient_trajectory,
)
from foretune.tasks.prediction.virtual_run import VirtualRun, virtual_run
from foretune.tasks.samples.rows import ShardRows, SubsetRows

if TYPE_CHECKING:
    from foretune.tasks.inputs.adapted import AdaptedModel
    from foretune.tasks.numerics.integrator import AnchorPlan


@content_task(version=5)
def path(
    draft: Any,
    run: Run,
    nodes: list[ArtifactRef],
    node_rows: list[ShardRows],
    heldout_nodes: list[ArtifactRef],
    heldout_gradient: ArtifactRef,
    evaluation: SubsetRows,
    model: ModelHandle,
    adapter: AdapterSettings,
    training: TrainingSettings,
    dpo_beta: float | None,
    settings: PathSettings,
) -> None:
    """The weights' path before clipping, the losses along it, and the gradient shift at every anchor."""
    adapted = adapt(model.open(run), adapter, training.seed)
    virtual = virtual_run(run, nodes, adapted, training, paired=dpo_beta is not None)
    base_loss = loss_at_base(run, heldout_nodes, evaluation.subset.ids)
    base_gradient, record = mean_gradients(run.store.open(heldout_gradient)), field_record(run, nodes)
    factors = None if record is None else settings_of(record)
    dtype, events = virtual.field.read(0, virtual.field.names[0]).dtype, EventLog.of(run)
    shifts = ShiftFiles(draft, dtype, record, 0 if factors is None else SHIFT_RANKS * factors.rank)

    def at_weights(rows: ShardRows | SubsetRows, seen: AdaptedModel) -> RowsAtWeights:
        return RowsAtWeights(seen, rows.read(run), dpo_beta, settings.batch_tokens, factors)

    with device_lock(adapted.loaded):
        heldout = HeldOut(at_weights(evaluation, adapted.without_autocast()), base_loss, base_gradient)
        frozen, plan = planned_path(virtual, heldout, events, settings)
        if plan is None:
            trajectory = frozen
        else:
            blocks = [at_weights(rows, adapted) for rows in trained_rows(run, nodes, node_rows)]
            trajectory = anchored_trajectory(virtual, plan, blocks, heldout, events, shifts, settings.most_evaluations)
    write_path(draft, virtual, frozen, trajectory, shifts, sketch(row_ids(run, nodes)))


def planned_path(
    virtual: VirtualRun, heldout: HeldOut, events: EventLog, settings: PathSettings
) -> tuple[Trajectory, AnchorPlan | None]:
    """The path over the frozen field, and where to measure again; without a plan, that path to the run's end."""
    steps, frozen_path = evaluation_steps(virtual.steps, settings.path_points), FrozenPath(virtual)

    def followed(**until: Any) -> Trajectory:
        trajectory = frozen_gradient_trajectory(frozen_path, steps, heldout, events, **until)
        return replace(trajectory, clipped_steps=frozen_path.clipped_steps)

    frozen = followed(tolerance=settings.tolerance if settings.anchors != 1 else None)
    plan = anchor_plan(virtual, frozen, settings)
    return (followed(known=frozen) if plan is None else frozen), plan


def anchor_plan(virtual: VirtualRun, frozen: Trajectory, settings: PathSettings) -> AnchorPlan | None:
    """Where to measure again, and how many blocks each time. None where the base gradients are accurate enough, or
    the only ones that the settings ask for or the budget pays for.

    With `auto`, segments are as long as the frozen field can be trusted, and all measured rows together, the base
    field's included, stay within `gradient_budget` of the real run's gradient samples, but for half a pass that is
    always paid for, and within `gradient_passes` more passes over the rows, so that the cost of a long run does not
    grow with its epochs. A given number of anchors
    is followed, with one block each where the budget allows no more.
    """
    if settings.anchors == 1:
        return None
    from foretune.tasks.numerics.integrator import AnchorPlan, equal_segments, plan_anchors, trusted_share

    if settings.anchors == "auto" and path_summary(frozen.points, settings.tolerance)["horizon"] is None:
        return None
    field, rows = virtual.field, sum(virtual.field.rows)
    spare = settings.rows_again(rows, virtual.training.whole(rows) * virtual.training.epochs)
    portions = settings.portions(rows, field.blocks, spare, virtual.steps)
    if settings.anchors == "auto":
        errors = {p["step"]: p["predicted_loss"] - p["evaluated_loss"] for p in frozen.points}
        trusted = trusted_share(errors, virtual.rates, settings.tolerance)
        most, all_paid = settings.max_anchors - 1, settings.to_the_last
        plan = plan_anchors(field, virtual.rates, trusted, most, spare, to_the_last=all_paid, portions=portions)
        return plan if plan.anchor_steps else None
    steps = tuple(equal_segments(virtual.rates, int(settings.anchors) - 1))
    blocks = int(spare * field.blocks * portions / rows / len(steps))
    return AnchorPlan(steps, min(field.blocks, max(1, blocks)), settings.to_the_last, portions)


def write_path(
    draft: Any, virtual: VirtualRun, frozen: Trajectory, trajectory: Trajectory, shifts: ShiftFiles, rows: list[str]
) -> None:
    """All but the gradient shifts, which are written as they are measured."""
    draft.write_table("single_anchor.parquet", frozen.points)
    if shifts.record is None:  # else the factors are all that there is of it
        draft.write_tensors("delta.safetensors", {name: d.contiguous() for name, d in trajectory.delta.items()})
    if trajectory.factors:
        write_factors(draft, trajectory.factors)
    draft.write_table("path.parquet", trajectory.points)
    elapsed_lr = virtual.elapsed_lr
    draft.write_json(
        "path.json",
        {
            "steps": virtual.steps,
            "travel": elapsed_lr[-1],
            "anchor_steps": trajectory.anchor_steps,
            "measured_rows": trajectory.measured_rows,
            "clipped_steps": trajectory.clipped_steps,
            "anchors": [asdict(anchor) for anchor in trajectory.anchors],
            "moved": {kind: [[step, elapsed_lr[step]] for step in steps] for kind, steps in shifts.steps.items()},
            "rows": rows,
            **({RECORD: shifts.record} if shifts.record else {}),
        },
    )


def field_record(run: Run, nodes: list[ArtifactRef]) -> dict[str, Any] | None:
    """Of which adapter a field in factors is; None for one of whole gradients."""
    counts = run.store.open(nodes[0]).json("shard.json")
    if RECORD not in counts:
        return None
    kept = {name: value for name, value in counts[RECORD].items() if name != "errors"}
    return {**kept, "modules": counts["modules"]}


def trained_rows(run: Run, nodes: list[ArtifactRef], node_rows: list[ShardRows]) -> list[ShardRows]:
    """The rows of every gradient block of the field: shards without a trained token are no blocks of it."""
    tokens = [run.store.open(node).json("shard.json")["tokens"] for node in nodes]
    return [rows for rows, count in zip(node_rows, tokens, strict=True) if count]


def row_ids(run: Run, nodes: list[ArtifactRef]) -> list[str]:
    """The sample ids of every block's rows."""
    tables = [run.store.open(node).arrow("samples.parquet", columns=["sample_id"]) for node in nodes]
    return [sample_id for table in tables for sample_id in table["sample_id"].to_pylist()]
