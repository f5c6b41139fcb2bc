"""Pass 3b: the weight delta that the requested run would produce, without running it.

Default rule: the optimiser's recursion over the measured gradient field, with LoRA's two factors moving. The
seed's closed form, delta_i = -eta T / (K_ii + lambda) g_i, is always computed as a map and is a rule of its own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from foretune.storage.contents import Artifact
from foretune.storage.events import EventLog
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import content_task
from foretune.tasks.inputs.adapted import AdaptedModel, adapt
from foretune.tasks.inputs.handles import ModelHandle, exclusive
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.prediction.earlier_path import stored_drift
from foretune.tasks.prediction.evaluation import RowsAtWeights, loss_at_base
from foretune.tasks.prediction.settings import PredictionSettings
from foretune.tasks.prediction.trajectory import (
    DRIFT,
    HELDOUT_DRIFT,
    Trajectory,
    along,
    path_steps,
    path_summary,
    single_anchor,
    virtual_run,
)
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.bounds import BoundedDelta
    from foretune.tasks.numerics.rayleigh import StraightPath


EARLIER = "an earlier run"


@content_task(version=7)
def prediction(
    draft: Any,
    run: Run,
    nodes: list[ArtifactRef],
    gradient: ArtifactRef,
    heldout_nodes: list[ArtifactRef],
    heldout_gradient: ArtifactRef,
    path: ArtifactRef | None,
    earlier: bool,
    curvature: ArtifactRef,
    evaluation: SubsetRows,
    model: ModelHandle,
    adapter: AdapterSettings,
    training: TrainingSettings,
    dpo_beta: float | None,
    settings: PredictionSettings,
) -> None:
    """Delta, map of K_ii and eta_eff, loss along the predicted path, horizon, trust.

    `path` is the run's own measured path, or with `earlier` that of a run that went nearly the same way; none with
    the closed form, which measures nothing.
    """
    from foretune.tasks.numerics.bounds import bounded
    from foretune.tasks.numerics.rayleigh import effective_rates

    adapted = adapt(model.open(run), adapter, training.seed)
    virtual = virtual_run(run, nodes, adapted, training, paired=dpo_beta is not None)
    rows = sum(virtual.field.rows)
    mean = run.store.open(gradient).tensors("gradients.safetensors")
    measured = run.store.open(curvature)
    # A tensor without gradient has no direction to measure K_ii in, and does not move either.
    known = {row["module"]: row["K_ii"] for row in measured.arrow("layers.parquet").to_pylist()}
    quotients = {name: 0.0 if math.isnan(value) else value for name, value in known.items()}
    rates = effective_rates(quotients, training.learning_rate, virtual.steps, settings.rayleigh_lambda)
    closed_form = closed_form_path(adapted, mean, rates, virtual.steps)
    stored = None if path is None else run.store.open(path)
    if stored is not None and not earlier:
        trajectory = stored_trajectory(stored, adapted.loaded.device)
    else:
        heldout_mean = run.store.open(heldout_gradient).tensors("gradients.safetensors")
        base = (loss_at_base(run, heldout_nodes, evaluation.subset.ids), heldout_mean)
        events, device = EventLog.of(run), adapted.loaded.device
        with exclusive(adapted.loaded):
            heldout = RowsAtWeights(adapted, evaluation.read(run), dpo_beta, settings.batch_tokens)
            if stored is None:
                at = path_steps(virtual.steps, settings.path_points)
                trajectory = single_anchor(closed_form, at, heldout, base, events)
            else:
                moved = [stored_drift(stored, what, device) for what in (DRIFT, HELDOUT_DRIFT)]
                trajectory = along(virtual, *moved, heldout, base, events)
    applied = bounded(trajectory.delta, adapted.weights, settings.max_relative_change)
    single = stored.arrow("single_anchor.parquet").to_pylist() if stored is not None else trajectory.points
    draft.write_table("single_anchor.parquet", single)
    draft.write_tensors("delta.safetensors", {name: d.contiguous() for name, d in applied.delta.items()})
    draft.write_table("path.parquet", trajectory.points)
    draft.write_table("layers.parquet", layer_map(adapted, quotients, rates, closed_form, applied))
    summary = path_summary(trajectory.points, settings.tolerance)
    summary |= {
        "rule": settings.rule,
        "path_of": EARLIER if earlier else "this run",
        "steps": virtual.steps,
        "clipped_steps": trajectory.clipped_steps,
        "clipped_modules": len(applied.clipped),
        "anchors": len(trajectory.anchor_steps),
        "anchor_steps": trajectory.anchor_steps,
        "order_of_rows": "the trainer's" if virtual.detail else "by shards",
        "gradient_samples_used": rows + trajectory.measured_rows,
        "gradient_samples_real": round(rows * training.epochs),
        **sharpness_summary(measured.json("summary.json"), settings.sharp),
    }
    summary["signals"] = prediction_signals(summary, settings)
    draft.write_json("summary.json", summary)


def stored_trajectory(path: Artifact, device: Any) -> Trajectory:
    """The trajectory as its own run's path holds it."""
    found = path.json("path.json")
    return Trajectory(
        {name: change.to(device) for name, change in path.tensors("delta.safetensors").items()},
        path.arrow("path.parquet").to_pylist(),
        found["anchor_steps"],
        found["measured_rows"],
        found["clipped_steps"],
    )


def closed_form_path(
    adapted: AdaptedModel, gradient: dict[str, Tensor], rates: dict[str, float], steps: int
) -> StraightPath:
    """The seed's rule in adapter coordinates, lifted to the weights."""
    from foretune.tasks.numerics.rayleigh import StraightPath, closed_form_step

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
        remedy = "leave prediction.along out" if summary["path_of"] == EARLIER else "simulate a shorter run"
        signals.append(
            {
                "name": "beyond_horizon",
                "severity": "warn",
                "value": summary["horizon"],
                "threshold": summary["steps"],
                "advice": f"prediction and evaluation part before step {summary['horizon']} of "
                f"{summary['steps']}; read the end of the path as a direction, not as a number, or {remedy}",
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
