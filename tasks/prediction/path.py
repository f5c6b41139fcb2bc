"""Pass 3a: the path of the weights that the requested run would take, with the gradients measured along it.

It is an artefact of its own so that a run that goes nearly the same way (another rate, a few rows fewer) may be
predicted along it: see `foretune.tasks.prediction.earlier_path`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from foretune.storage.events import EventLog
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import content_task
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.handles import ModelHandle, exclusive
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.prediction.earlier_path import drift_file, sketch
from foretune.tasks.prediction.evaluation import RowsAtWeights, loss_at_base
from foretune.tasks.prediction.settings import PathSettings
from foretune.tasks.prediction.trajectory import (
    Trajectory,
    VirtualRun,
    anchored,
    path_steps,
    path_summary,
    planned_anchors,
    single_anchor,
    virtual_run,
)
from foretune.tasks.samples.rows import ShardRows, SubsetRows

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.integrator import AnchorPlan


@content_task(version=1)
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
    """delta.safetensors before clipping, path.parquet, single_anchor.parquet, path.json, and per anchor what moved."""
    events = EventLog.of(run)
    adapted = adapt(model.open(run), adapter, training.seed)
    virtual = virtual_run(run, nodes, adapted, training, paired=dpo_beta is not None)
    heldout_mean = run.store.open(heldout_gradient).tensors("gradients.safetensors")
    base = (loss_at_base(run, heldout_nodes, evaluation.subset.ids), heldout_mean)
    kept = KeptDrift(draft, virtual.field.read(0, virtual.field.names[0]).dtype)
    with exclusive(adapted.loaded):
        heldout = RowsAtWeights(adapted, evaluation.read(run), dpo_beta, settings.batch_tokens)
        at = path_steps(virtual.steps, settings.path_points)
        followed = partial(single_anchor, virtual.replayed(at), at, heldout, base, events)
        trajectory = followed(tolerance=settings.tolerance if settings.anchors != 1 else None)
        plan = anchor_plan(virtual, trajectory, settings)
        if plan is None:
            trajectory = followed(known=trajectory)
        draft.write_table("single_anchor.parquet", trajectory.points)
        if plan is not None:
            tables = [r.read(run) for r, tokens in zip(node_rows, node_tokens(run, nodes), strict=True) if tokens]
            at_nodes = [RowsAtWeights(adapted, table, dpo_beta, settings.batch_tokens) for table in tables]
            trajectory = anchored(virtual, plan.stops, plan.nodes_per_anchor, at_nodes, heldout, base, events, kept)
    draft.write_tensors("delta.safetensors", {name: d.contiguous() for name, d in trajectory.delta.items()})
    draft.write_table("path.parquet", trajectory.points)
    travelled = virtual.travelled
    draft.write_json(
        "path.json",
        {
            "steps": virtual.steps,
            "travel": travelled[-1],
            "anchor_steps": trajectory.anchor_steps,
            "measured_rows": trajectory.measured_rows,
            "clipped_steps": trajectory.clipped_steps,
            "moved": {what: [[step, travelled[step]] for step in steps] for what, steps in kept.steps.items()},
            "rows": sketch(row_ids(run, nodes)),
        },
    )


class KeptDrift:
    """Stores how far the mean gradients have moved, a file each, in the dtype of the gradient field."""

    def __init__(self, draft: Any, dtype: Any) -> None:
        self.draft, self.dtype, self.steps = draft, dtype, dict[str, list[int]]()

    def __call__(self, what: str, step: int, moved: dict[str, Tensor]) -> None:
        self.draft.write_tensors(
            drift_file(what, step), {name: change.to(self.dtype) for name, change in moved.items()}
        )
        self.steps.setdefault(what, []).append(step)


def anchor_plan(virtual: VirtualRun, first: Trajectory, settings: PathSettings) -> AnchorPlan | None:
    """Where to measure again: nowhere when the single anchor is trusted all the way, or when told so."""
    if settings.anchors == 1:
        return None
    from foretune.tasks.numerics.integrator import trusted_travel

    summary = path_summary(first.points, settings.tolerance)
    if settings.anchors == "auto" and summary["horizon"] is None:
        return None
    errors = {p["step"]: p["predicted_loss"] - p["evaluated_loss"] for p in first.points}
    return planned_anchors(
        virtual,
        trusted_travel(errors, virtual.rates, settings.tolerance),
        settings.anchors,
        settings.max_anchors,
        settings.gradient_budget,
        settings.gradient_passes,
    )


def node_tokens(run: Run, nodes: list[ArtifactRef]) -> list[float]:
    """Trained tokens of every node of the field."""
    return [run.store.open(node).json("shard.json")["tokens"] for node in nodes]


def row_ids(run: Run, nodes: list[ArtifactRef]) -> list[str]:
    """The sample ids of every node's rows."""
    tables = [run.store.open(node).arrow("samples.parquet", columns=["sample_id"]) for node in nodes]
    return [sample_id for table in tables for sample_id in table["sample_id"].to_pylist()]
