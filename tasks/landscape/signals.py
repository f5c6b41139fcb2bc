"""What a gradient landscape says of each module and of the run: the table, dead layers, spikes, the signals."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.tasks.engine.signals import Signal


class SignalThresholds(BaseModel):
    """Where the landscape's numbers become signals."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Landscape signals")

    version: Literal[1] = 1
    dead_layer_norm: float = Field(
        default=1e-6, ge=0, le=1e6, title="Dead layer", description="mean gradient norm below this"
    )
    spike_factor: float = Field(
        default=5.0, gt=0, le=1e6, title="Spike", description="mean max norm over factor x max_grad_norm"
    )


def layer_table(
    modules: list[str], steps: list[dict[str, Any]], mean_norms: list[float], dead_layer_norm: float
) -> list[dict[str, Any]]:
    """One row per adapted module: mean and maximum over batches of its gradient norm, and whether it is dead."""
    rows = []
    for position, module in enumerate(modules):
        norms = [step["layer_grad_norms"][position] for step in steps]
        average = sum(norms) / len(norms)
        rows.append(
            {
                "module": module,
                "mean": average,
                "max": max(norms),
                "norm_of_mean": mean_norms[position],
                "dead": average < dead_layer_norm,
            }
        )
    return rows


def count_dead(norms: list[float], thresholds: SignalThresholds) -> int:
    """Modules whose gradient norm is under the threshold, in one batch."""
    return sum(norm < thresholds.dead_layer_norm for norm in norms)


def landscape_summary(
    steps: list[dict[str, Any]],
    layers: list[dict[str, Any]],
    counts: dict[str, Any],
) -> dict[str, Any]:
    """The landscape's numbers for the report's first screen."""
    tokens = sum(step["tokens"] for step in steps)
    return {
        "loss": sum(step["loss"] * step["tokens"] for step in steps) / tokens,
        "rows": counts["rows"],
        "tokens": tokens,
        "batches": len(steps),
        "global_max_norm": max(step["max_grad_norm"] for step in steps),
        "mean_max_norm": sum(step["max_grad_norm"] for step in steps) / len(steps),
        "dead_layers": [layer["module"] for layer in layers if layer["dead"]],
        "noise_scale_tokens": counts["noise_scale_tokens"],
        "noise_scale_se": counts["noise_scale_se"],
    }


def landscape_signals(
    role: str,
    layers: list[dict[str, Any]],
    steps: list[dict[str, Any]],
    max_grad_norm: float,
    thresholds: SignalThresholds,
) -> list[dict[str, Any]]:
    """`dead_layer` and `gradient_spike`, judged on the training rows only."""
    if role != "train":
        return []
    signals = []
    dead = [layer["module"] for layer in layers if layer["dead"]]
    if dead:
        signals.append(
            Signal(
                name="dead_layer",
                severity="warn",
                value=len(dead),
                threshold=thresholds.dead_layer_norm,
                advice=f"{len(dead)} of {len(layers)} adapted modules get no gradient ({', '.join(dead[:3])}); "
                "leave them out of target_modules",
            ).stored()
        )
    spike = sum(step["max_grad_norm"] for step in steps) / len(steps)
    limit = thresholds.spike_factor * max_grad_norm
    if max_grad_norm and spike > limit:
        signals.append(
            Signal(
                name="gradient_spike",
                severity="warn",
                value=spike,
                threshold=limit,
                advice="most steps would be clipped hard; lower learning_rate, add warm-up, or look at the rows "
                "with the largest loss",
            ).stored()
        )
    return signals
