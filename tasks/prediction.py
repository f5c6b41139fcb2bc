"""Pass 3: the weight delta that the requested run would produce, without running it.

Default rule: the optimiser's recursion over the measured gradient field, with LoRA's two factors moving. The
seed's closed form, delta_i = -eta T / (K_ii + lambda) g_i, is always computed as a map and is a rule of its own.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from storage.events import EventLog
from storage.refs import ArtifactRef
from storage.runs import Run
from tasks.adapted import AdaptedModel, adapt, gradient_field
from tasks.evaluation import RowsAtWeights, loss_at_base
from tasks.keys import content_task, without_result
from tasks.loading import AdapterSettings
from tasks.model import ModelHandle, exclusive
from tasks.row_gradients import row_gradients
from tasks.rows import ShardRows, SubsetRows
from tasks.training import TrainingSettings
from tasks.trajectory import Trajectory, VirtualRun, anchored, moving_adapter, planned_anchors, single_anchor

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.numerics.bounds import BoundedDelta
    from tasks.numerics.integrator import AnchorPlan
    from tasks.numerics.rayleigh import StraightPath


class PredictionSettings(BaseModel):
    """How the delta is predicted, bounded and checked."""

    model_config = ConfigDict(extra="forbid", title="Prediction")

    version: Literal[1] = 1
    rule: Literal["recursion", "rayleigh"] = Field(
        "recursion", title="Rule", description="rayleigh: the closed form eta T / (K_ii + lambda) x gradient"
    )
    rayleigh_lambda: float = Field(0.01, gt=0, title="lambda of the closed form")
    max_relative_change: float = Field(
        0.25, gt=0, title="Clip", description="largest norm of a tensor's delta, as a share of the tensor's norm"
    )
    sharp: float = Field(10.0, gt=0, title="Sharp above", description="largest curvature eigenvalue")
    path_points: int = Field(4, ge=1, le=64, title="Evaluated steps of the predicted path")
    evaluation_rows: int = Field(24, ge=1, title="Held-out rows evaluated along the path", description="chosen by id")
    tolerance: float = Field(0.05, gt=0, title="Tolerance", description="nats between predicted and evaluated loss")
    anchors: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        title="Anchors",
        description="where gradients are measured: 1 = the base only; auto: again where the base is not trusted",
    )
    max_anchors: int = Field(17, ge=1, title="Most anchors", description="of auto, the base included")
    gradient_budget: float = Field(
        0.5, gt=0, title="Gradient budget", description="of auto: share of the real run's gradient samples"
    )
    gradient_passes: float = Field(
        2.0, ge=0, title="Passes measured again", description="of auto: most gradient samples, as passes over the rows"
    )
    batch_tokens: int = Field(1024, ge=1, title="Tokens per micro-batch", json_schema_extra=without_result())

    @property
    def measures_again(self) -> bool:
        """Whether gradients may be measured again along the path."""
        return self.rule == "recursion" and self.anchors != 1


@content_task(version=6)
def prediction(
    draft: Any,
    run: Run,
    nodes: list[ArtifactRef],
    node_rows: list[ShardRows],
    gradient: ArtifactRef,
    heldout_nodes: list[ArtifactRef],
    heldout_gradient: ArtifactRef,
    curvature: ArtifactRef,
    evaluation: SubsetRows,
    model: ModelHandle,
    adapter: AdapterSettings,
    training: TrainingSettings,
    dpo_beta: float | None,
    settings: PredictionSettings,
) -> None:
    """Delta, map of K_ii and eta_eff, loss along the predicted path, horizon, trust."""
    from tasks.numerics.bounds import bounded
    from tasks.numerics.rayleigh import effective_rates

    events = EventLog.of(run)
    adapted = adapt(model.open(run), adapter, training.seed)
    field = gradient_field(run, nodes, adapted)
    rows = sum(field.rows)
    detail = row_gradients(run, nodes, adapted)
    virtual = VirtualRun(moving_adapter(adapted), field, training, training.steps(rows), detail, dpo_beta is not None)
    mean = run.store.open(gradient).tensors("gradients.safetensors")
    measured = run.store.open(curvature)
    # A tensor without gradient has no direction to measure K_ii in, and does not move either.
    known = {row["module"]: row["K_ii"] for row in measured.arrow("layers.parquet").to_pylist()}
    quotients = {name: 0.0 if math.isnan(value) else value for name, value in known.items()}
    rates = effective_rates(quotients, training.learning_rate, virtual.steps, settings.rayleigh_lambda)
    closed_form = closed_form_path(adapted, mean, rates, virtual.steps)
    heldout_mean = run.store.open(heldout_gradient).tensors("gradients.safetensors")
    base = (loss_at_base(run, heldout_nodes, evaluation.subset.ids), heldout_mean)
    with exclusive(adapted.loaded):
        heldout = RowsAtWeights(adapted, evaluation.read(run), dpo_beta, settings.batch_tokens)
        at = path_steps(virtual.steps, settings.path_points)
        path = closed_form if settings.rule == "rayleigh" else virtual.replayed(at)
        followed = partial(single_anchor, path, at, heldout, base, events)
        trajectory = followed(tolerance=settings.tolerance if settings.measures_again else None)
        plan = anchor_plan(virtual, trajectory, settings)
        if plan is None:
            trajectory = followed(known=trajectory)
        draft.write_table("single_anchor.parquet", trajectory.points)
        if plan is not None:
            tables = [r.read(run) for r, tokens in zip(node_rows, node_tokens(run, nodes), strict=True) if tokens]
            at_nodes = [RowsAtWeights(adapted, table, dpo_beta, settings.batch_tokens) for table in tables]
            trajectory = anchored(virtual, plan.stops, plan.nodes_per_anchor, at_nodes, heldout, base, events)
        applied = bounded(trajectory.delta, adapted.weights, settings.max_relative_change)
    draft.write_tensors("delta.safetensors", {name: d.contiguous() for name, d in applied.delta.items()})
    draft.write_table("path.parquet", trajectory.points)
    draft.write_table("layers.parquet", layer_map(adapted, quotients, rates, closed_form, applied))
    summary = path_summary(trajectory.points, settings.tolerance)
    summary |= {
        "rule": settings.rule,
        "steps": virtual.steps,
        "clipped_steps": trajectory.clipped_steps,
        "clipped_modules": len(applied.clipped),
        "anchors": len(trajectory.anchor_steps),
        "anchor_steps": trajectory.anchor_steps,
        "order_of_rows": "the trainer's" if detail else "by shards",
        "gradient_samples_used": rows + trajectory.measured_rows,
        "gradient_samples_real": round(rows * training.epochs),
        **sharpness_summary(measured.json("summary.json"), settings.sharp),
    }
    summary["signals"] = prediction_signals(summary, settings)
    draft.write_json("summary.json", summary)


def path_steps(steps: int, points: int) -> list[int]:
    """Steps at which the path is looked at; the last is the run's end."""
    return sorted({round(steps * point / points) for point in range(1, points + 1)} - {0})


def anchor_plan(virtual: VirtualRun, first: Trajectory, settings: PredictionSettings) -> AnchorPlan | None:
    """Where to measure again: nowhere when the single anchor is trusted all the way, or when told so."""
    if not settings.measures_again:
        return None
    from tasks.numerics.integrator import trusted_travel

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


def closed_form_path(
    adapted: AdaptedModel, gradient: dict[str, Tensor], rates: dict[str, float], steps: int
) -> StraightPath:
    """The seed's rule in adapter coordinates, lifted to the weights."""
    from tasks.numerics.rayleigh import StraightPath, closed_form_step

    pulled = adapted.space.pull({name: gradient[name].to(w.device) for name, w in adapted.weights.items()})
    return StraightPath(adapted.space.lift(closed_form_step(pulled, rates)), steps)


def layer_map(
    adapted: AdaptedModel,
    quotients: dict[str, float],
    rates: dict[str, float],
    closed_form: StraightPath,
    applied: BoundedDelta,
) -> list[dict[str, Any]]:
    """Per adapted tensor: K_ii, eta_eff, the norm of its delta, and what the closed form would have moved it."""
    rows = []
    for name, weight in adapted.weights.items():
        norm, size = applied.norms[name], float(weight.norm())
        rows.append(
            {
                "module": name,
                "K_ii": quotients[name],
                "eta_eff": rates[name],
                "clipped": name in applied.clipped,
                "norm": norm,
                "weight_norm": size,
                "relative": norm / size if size else 0.0,
                "closed_form_norm": float(closed_form.final[name].norm()),
            }
        )
    return rows


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


def sharpness_summary(curvature: dict[str, Any], sharp: float) -> dict[str, Any]:
    """The largest curvature eigenvalue with its label."""
    value = curvature["sharpness"]
    return {
        "sharpness": value,
        "sharpness_label": "sharp" if value > sharp else "flat",
        "sharpness_residual": curvature["sharpness_residual"],
    }


def prediction_signals(summary: dict[str, Any], settings: PredictionSettings) -> list[dict[str, Any]]:
    """`sharp_landscape`, `beyond_horizon` and `delta_clipped`."""
    signals = []
    if summary["sharpness_label"] == "sharp":
        signals.append(
            {
                "name": "sharp_landscape",
                "severity": "warn",
                "value": summary["sharpness"],
                "threshold": settings.sharp,
                "advice": "the loss bends sharply at the base weights; lower learning_rate or add warm-up",
            }
        )
    if summary["horizon"] is not None:
        signals.append(
            {
                "name": "beyond_horizon",
                "severity": "warn",
                "value": summary["horizon"],
                "threshold": summary["steps"],
                "advice": f"prediction and evaluation part before step {summary['horizon']} of "
                f"{summary['steps']}; read the end of the path as a direction, not as a number, or simulate "
                "a shorter run",
            }
        )
    if summary["clipped_modules"]:
        signals.append(
            {
                "name": "delta_clipped",
                "severity": "critical",
                "value": summary["clipped_modules"],
                "threshold": settings.max_relative_change,
                "advice": "tensors would move further than max_relative_change of their norm; lower learning_rate",
            }
        )
    return signals
