"""Pass 3b: the weight delta that the requested run would produce, without running it.

Default rule: the optimiser's recursion over the measured gradient field, with LoRA's two factors moving. The
seed's closed form, delta_i = -eta T / (K_ii + lambda) g_i, is always computed as a map and is a rule of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.contents import Artifact
from foretune.storage.events import EventLog
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import DELTA_FINITE_AND_CLIPPED
from foretune.tasks.engine.passes import content_task
from foretune.tasks.engine.signals import Signal
from foretune.tasks.inputs.adapted import AdaptedModel, adapt
from foretune.tasks.inputs.adapter_factors import stored_factors, write_delta, write_factors
from foretune.tasks.inputs.factors import RECORD, mean_gradients
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.inputs.trust import EARLIER, Trust, horizon_signal, trust_of
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.prediction.evaluation import HeldOut, RowsAtWeights, loss_at_base
from foretune.tasks.prediction.gradient_shifts import HELDOUT_SHIFT, TRAIN_SHIFT, stored_shift
from foretune.tasks.prediction.horizon import path_summary
from foretune.tasks.prediction.settings import PredictionSettings
from foretune.tasks.prediction.trajectory import (
    Trajectory,
    evaluation_steps,
    frozen_gradient_trajectory,
    trajectory_along_stored_path,
)
from foretune.tasks.prediction.virtual_run import VirtualRun, virtual_run
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    from foretune.tasks.numerics.bounds import BoundedDelta
    from foretune.tasks.numerics.factored import Gradient
    from foretune.tasks.numerics.rayleigh import StraightPath
    from foretune.tasks.numerics.replay import Adapter, Factors


@content_task(version=8)
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
    """The weight delta, the map of K_ii and eta_eff by layer, the losses along the path, its horizon and trust.

    `path` is the run's own measured path, or with `earlier` that of a similar run; none with the closed form, which
    measures nothing.
    """
    from foretune.tasks.numerics.bounds import bounded

    adapted = adapt(model.open(run), adapter, training.seed)
    virtual = virtual_run(run, nodes, adapted, training, paired=dpo_beta is not None)
    measured, stored = run.store.open(curvature), None if path is None else run.store.open(path)
    mean = mean_gradients(run.store.open(gradient))
    closed_form = closed_form_of(adapted, mean, stored_quotients(measured), virtual, settings.rayleigh_lambda)
    if stored is not None and not earlier:
        trajectory = own_trajectory(stored, adapted.loaded.device, virtual.adapter)
    else:
        base_loss = loss_at_base(run, heldout_nodes, evaluation.subset.ids)
        base_gradient = mean_gradients(run.store.open(heldout_gradient))
        events = EventLog.of(run)
        with device_lock(adapted.loaded):
            rows = RowsAtWeights(adapted, evaluation.read(run), dpo_beta, settings.batch_tokens)
            heldout = HeldOut(rows, base_loss, base_gradient)
            if stored is None:
                steps = evaluation_steps(virtual.steps, settings.path_points)
                trajectory = frozen_gradient_trajectory(closed_form.path, steps, heldout, events)
            else:
                device = adapted.loaded.device
                train_shift = stored_shift(stored, TRAIN_SHIFT, device)
                heldout_shift = stored_shift(stored, HELDOUT_SHIFT, device)
                trajectory = trajectory_along_stored_path(virtual, train_shift, heldout_shift, heldout, events)
    applied = bounded(trajectory.delta, adapted.weights, settings.max_relative_change)
    summary = prediction_summary(trajectory, virtual, applied, measured.json("summary.json"), earlier, settings)
    summary |= missed_by_factors(run.store.open(gradient).json("counts.json"))
    sizes = {name: float(weight.norm()) for name, weight in adapted.weights.items()}
    draft.check(
        DELTA_FINITE_AND_CLIPPED,
        "the norm of every tensor's delta with infinity, and with max_relative_change of the base tensor's norm",
        tensors=len(applied.norms),
        clipped=len(applied.clipped),
        largest_relative_change=max((n / sizes[name] for name, n in applied.norms.items() if sizes[name]), default=0.0),
        max_relative_change=settings.max_relative_change,
    )
    frozen = trajectory.points if stored is None else stored.arrow("single_anchor.parquet").to_pylist()
    write_prediction(draft, trajectory, frozen, applied, layer_map(adapted, closed_form, applied), summary)


def missed_by_factors(counts: dict[str, Any]) -> dict[str, float]:
    """How far the stored gradients are from the measured ones, over all weights; nothing of whole gradients."""
    if RECORD not in counts:
        return {}
    errors, norms = counts[RECORD]["errors"], dict(zip(counts["modules"], counts["norms"], strict=True))
    size = math.sqrt(sum(norm**2 for norm in norms.values())) or 1.0
    whole, along = (
        math.sqrt(sum((errors[name][side] * norm) ** 2 for name, norm in norms.items())) / size for side in (0, 1)
    )
    return {"factors_missed": whole, "factors_missed_along": along}


@dataclass(frozen=True)
class ClosedForm:
    """delta_i = -eta_eff_i g_i with eta_eff_i = eta T / (K_ii + lambda), by adapted tensor."""

    quotients: dict[str, float]  # K_ii
    rates: dict[str, float]  # eta_eff
    path: StraightPath


def stored_quotients(curvature: Artifact) -> dict[str, float]:
    """K_ii by adapted tensor. A tensor without gradient has no direction to measure it in, and no delta either: 0."""
    stored = {row["module"]: row["K_ii"] for row in curvature.arrow("layers.parquet").to_pylist()}
    return {name: 0.0 if math.isnan(value) else value for name, value in stored.items()}


def closed_form_of(
    adapted: AdaptedModel,
    gradient: Mapping[str, Gradient],
    quotients: dict[str, float],
    virtual: VirtualRun,
    damping: float,
) -> ClosedForm:
    """The seed's rule in adapter coordinates, lifted to the weights."""
    from foretune.tasks.numerics.rayleigh import StraightPath, closed_form_step, effective_rates

    rates = effective_rates(quotients, virtual.training.learning_rate, virtual.steps, damping)
    at: dict[str, Any] = {name: gradient[name].to(w.device) for name, w in adapted.weights.items()}
    end = closed_form_step(adapted.space.pull(at), rates)
    factors = {name: (a, end[name]) for name, a in getattr(adapted.space, "A", {}).items()}  # of LoRA alone
    whole: dict[str, Any] = moved_by(virtual.adapter, factors) if thin(virtual.adapter) else adapted.space.lift(end)
    return ClosedForm(quotients, rates, StraightPath(whole, virtual.steps, factors))


def thin(adapter: Adapter) -> bool:
    """Whether changes of the weights stay in LoRA's factors."""
    return getattr(adapter, "thin", False)


def moved_by(adapter: Any, factors: Factors) -> dict[str, Any]:
    """The change of the weights, in factors."""
    from foretune.tasks.numerics.factored import thin as in_factors

    return {name: in_factors(adapter.scale * b, a) for name, (a, b) in factors.items()}


def own_trajectory(path: Artifact, device: Any, adapter: Adapter) -> Trajectory:
    """The trajectory that the run's own path stored."""
    found = path.json("path.json")
    if RECORD in found:
        factors = {name: (a.to(device), b.to(device)) for name, (a, b) in stored_factors(path).items()}
        delta = moved_by(adapter, factors)
    else:
        delta = {name: change.to(device) for name, change in path.tensors("delta.safetensors").items()}
    return Trajectory(
        delta,
        path.arrow("path.parquet").to_pylist(),
        found["anchor_steps"],
        found["measured_rows"],
        found["clipped_steps"],
        factors=stored_factors(path),
    )


def layer_map(adapted: AdaptedModel, closed_form: ClosedForm, applied: BoundedDelta) -> list[dict[str, Any]]:
    """Per adapted tensor: K_ii, eta_eff, the norm of its delta, and the norm of the closed form's delta."""
    rows = []
    for name, weight in adapted.weights.items():
        norm, size = applied.norms[name], float(weight.norm())
        rows.append(
            {
                "module": name,
                "K_ii": closed_form.quotients[name],
                "eta_eff": closed_form.rates[name],
                "clipped": name in applied.clipped,
                "norm": norm,
                "weight_norm": size,
                "relative": norm / size if size else 0.0,
                "closed_form_norm": float(closed_form.path.final[name].norm()),
            }
        )
    return rows


def prediction_summary(
    trajectory: Trajectory,
    virtual: VirtualRun,
    applied: BoundedDelta,
    curvature: dict[str, Any],
    earlier: bool,
    settings: PredictionSettings,
) -> dict[str, Any]:
    """Losses, horizon and cost of the prediction, the sharpness at the base weights, and the signals from them."""
    rows = sum(virtual.field.rows)
    summary = {
        **path_summary(trajectory.points, settings.tolerance),
        "rule": settings.rule,
        "path_of": EARLIER if earlier else "this run",
        "steps": virtual.steps,
        "clipped_steps": trajectory.clipped_steps,
        "clipped_modules": len(applied.clipped),
        "anchors": len(trajectory.anchor_steps),
        "anchor_steps": trajectory.anchor_steps,
        "order_of_rows": order_in_words(virtual),
        "gradient_samples_used": rows + trajectory.measured_rows,
        "gradient_samples_real": round(virtual.training.whole(rows) * virtual.training.epochs),
        **sharpness_summary(curvature, settings.sharp),
    }
    trust = trust_of(trajectory.points, settings.tolerance)
    return {**summary, "signals": prediction_signals(summary, trust, settings)}


def order_in_words(virtual: VirtualRun) -> str:
    """Whose order the replayed rows have."""
    if virtual.row_gradients is None:
        return "by shards"
    return (
        "the trainer's, rows that were not measured played by those that were" if virtual.sampled else "the trainer's"
    )


def write_prediction(
    draft: Any,
    trajectory: Trajectory,
    frozen: list[dict[str, Any]],
    applied: BoundedDelta,
    layers: list[dict[str, Any]],
    summary: dict[str, Any],
) -> None:
    """`frozen` are the points of the path over base gradients alone, `layers` the map by adapted tensor."""
    draft.write_table("single_anchor.parquet", frozen)
    write_delta(draft, applied.delta)
    if trajectory.factors:
        write_factors(draft, {name: (a, b * applied.shares[name]) for name, (a, b) in trajectory.factors.items()})
    draft.write_table("path.parquet", trajectory.points)
    draft.write_table("layers.parquet", layers)
    draft.write_json("summary.json", summary)


def sharpness_summary(curvature: dict[str, Any], sharp: float) -> dict[str, Any]:
    """The largest curvature eigenvalue with its label."""
    value = curvature["sharpness"]
    return {
        "sharpness": value,
        "sharpness_label": "sharp" if value > sharp else "flat",
        "sharpness_residual": curvature["sharpness_residual"],
    }


def prediction_signals(summary: dict[str, Any], trust: Trust, settings: PredictionSettings) -> list[dict[str, Any]]:
    """`sharp_landscape`, `beyond_horizon` and `delta_clipped`."""
    signals = []
    if summary["sharpness_label"] == "sharp":
        signals.append(
            Signal(
                name="sharp_landscape",
                severity="warn",
                value=summary["sharpness"],
                threshold=settings.sharp,
                advice="the loss bends sharply at the base weights; lower learning_rate or add warm-up",
            ).stored()
        )
    parted = horizon_signal(trust, summary["path_of"])
    if parted is not None:
        signals.append(parted)
    if summary["clipped_modules"]:
        signals.append(
            Signal(
                name="delta_clipped",
                severity="critical",
                value=summary["clipped_modules"],
                threshold=settings.max_relative_change,
                advice="tensors would move further than max_relative_change of their norm; lower learning_rate",
            ).stored()
        )
    return signals
