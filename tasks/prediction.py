"""Pass 3: the weight delta that the requested run would produce, without running it.

Default rule: the optimiser's recursion over the measured gradient field, with LoRA's two factors moving. The
seed's closed form, delta_i = -eta T / (K_ii + lambda) g_i, is always computed as a map and is a rule of its own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from storage.artifacts import ArtifactRef
from storage.events import EventLog
from storage.runs import Run
from tasks.adapted import AdaptedModel, adapt, gradient_field
from tasks.evaluation import HeldoutLoss
from tasks.keys import content_task, without_result
from tasks.loading import AdapterSettings
from tasks.model import ModelHandle, exclusive
from tasks.rows import SubsetRows
from tasks.training import TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.numerics.bounds import BoundedDelta
    from tasks.numerics.field import GradientField
    from tasks.numerics.rayleigh import StraightPath
    from tasks.numerics.replay import Adapter, Replay


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
    batch_tokens: int = Field(2048, ge=1, title="Tokens per micro-batch", json_schema_extra=without_result())


@content_task(version=1)
def prediction(
    draft: Any,
    run: Run,
    nodes: list[ArtifactRef],
    landscape: ArtifactRef,
    heldout_landscape: ArtifactRef,
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

    adapted = adapt(model.open(run), adapter, training.seed)
    field = gradient_field(run, nodes, adapted)
    rows = sum(field.rows)
    steps = training.steps(rows)
    gradient = run.store.open(landscape).tensors("gradients.safetensors")
    measured = run.store.open(curvature)
    # A tensor without gradient has no direction to measure K_ii in, and does not move either.
    known = {row["module"]: row["K_ii"] for row in measured.arrow("layers.parquet").to_pylist()}
    quotients = {name: 0.0 if math.isnan(value) else value for name, value in known.items()}
    rates = effective_rates(quotients, training.learning_rate, steps, settings.rayleigh_lambda)
    closed_form = closed_form_path(adapted, gradient, rates, steps)
    at = sorted({round(steps * point / settings.path_points) for point in range(1, settings.path_points + 1)} - {0})
    if settings.rule == "rayleigh":
        path, clipped_steps = closed_form, ()
    else:
        path = replayed_path(adapted, field, training, steps, at)
        clipped_steps = path.clipped_steps
    applied = bounded(path.delta_at(steps), adapted.weights, settings.max_relative_change)
    heldout_gradient = run.store.open(heldout_landscape).tensors("gradients.safetensors")
    with exclusive(adapted.loaded):
        loss = HeldoutLoss(adapted, evaluation.read(run), dpo_beta, settings.batch_tokens)
        deltas = {step: path.delta_at(step) for step in at[:-1]} | {steps: applied.delta}
        points = evaluated_path(EventLog.of(run), loss, deltas, heldout_gradient)
    draft.write_tensors("delta.safetensors", {name: d.contiguous() for name, d in applied.delta.items()})
    draft.write_table("path.parquet", points)
    draft.write_table("layers.parquet", layer_map(adapted, quotients, rates, closed_form, applied))
    summary = path_summary(points, settings.tolerance)
    summary |= {
        "rule": settings.rule,
        "steps": steps,
        "clipped_steps": len(clipped_steps),
        "clipped_modules": len(applied.clipped),
        "anchors": 1,
        "anchor_steps": [0],
        "gradient_samples_used": rows,
        "gradient_samples_real": round(rows * training.epochs),
        **sharpness_summary(measured.json("summary.json"), settings.sharp),
    }
    summary["signals"] = prediction_signals(summary, settings)
    draft.write_json("summary.json", summary)


def replayed_path(
    adapted: AdaptedModel, field: GradientField, training: TrainingSettings, steps: int, at: list[int]
) -> Replay:
    """The optimizer's recursion over the frozen field for the whole run, kept at the steps `at`."""
    from tasks.numerics.field import virtual_batches
    from tasks.numerics.replay import replay
    from tasks.numerics.schedules import learning_rates

    batches = virtual_batches(field, training.rows_per_step, steps, training.seed)
    rates = learning_rates(
        training.lr_scheduler_type, training.learning_rate, steps, training.warmup_steps(sum(field.rows))
    )
    return replay(batches.gradient, moving_adapter(adapted), training.optimizer_settings(), rates, snapshots=at)


def moving_adapter(adapted: AdaptedModel) -> Adapter:
    """The adapter as the recursion moves it: both LoRA factors, or the weights themselves."""
    from tasks.numerics.replay import FullAdapter, LoraAdapter
    from tasks.numerics.spaces import LoraSpace

    if isinstance(adapted.space, LoraSpace):
        outputs = {name: weight.shape[0] for name, weight in adapted.weights.items()}
        return LoraAdapter(adapted.space.A, adapted.space.scale, outputs)
    return FullAdapter(adapted.weights)


def closed_form_path(
    adapted: AdaptedModel, gradient: dict[str, Tensor], rates: dict[str, float], steps: int
) -> StraightPath:
    """The seed's rule in adapter coordinates, lifted to the weights."""
    from tasks.numerics.rayleigh import StraightPath, closed_form_step

    pulled = adapted.space.pull({name: gradient[name].to(w.device) for name, w in adapted.weights.items()})
    return StraightPath(adapted.space.lift(closed_form_step(pulled, rates)), steps)


def evaluated_path(
    events: EventLog, loss: HeldoutLoss, deltas: dict[int, dict[str, Tensor]], heldout_gradient: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """Per step: the loss that the frozen field predicts to first order, and the loss that forwards find there."""
    base = loss({})
    points = [{"step": 0, "predicted_loss": base, "evaluated_loss": base}]
    for step, delta in deltas.items():
        change = sum(float((heldout_gradient[name].to(d.device) * d).sum()) for name, d in delta.items())
        points.append({"step": step, "predicted_loss": base + change, "evaluated_loss": loss(delta)})
        events.emit("progress", task="prediction", done=len(points) - 1, total=len(deltas))
    return points


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
        norm = applied.norms[name]
        rows.append(
            {
                "module": name,
                "K_ii": quotients[name],
                "eta_eff": rates[name],
                "clipped": name in applied.clipped,
                "norm": norm,
                "relative": norm / float(weight.norm()),
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
                "advice": f"the frozen gradients stop telling the truth before step {summary['horizon']} of "
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
