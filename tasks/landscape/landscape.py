"""Pass 2: forward and backward over every row at the base weights, no optimiser.

Per shard: the sum of the full-weight gradients G_W of the adapted modules (the gradient field that the
prediction replays), the gradient of the loss in the residual stream at the SAE's hook, and the loss of every
sample. The reduction divides once, finds dead layers and spikes, and estimates the gradient noise scale.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.events import EventLog
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import without_result
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.field import RowCoordinates, RowsApart
from foretune.tasks.inputs.handles import ModelHandle, exclusive
from foretune.tasks.loading import AdapterTargets, label_caller, recomputed, target_weights
from foretune.tasks.loading.hooks import captured_residuals
from foretune.tasks.samples.minibatches import minibatches
from foretune.tasks.samples.rows import ShardRows


class LandscapeSettings(BaseModel):
    """How the gradient field is measured and judged."""

    model_config = ConfigDict(extra="forbid", title="Landscape")

    version: Literal[1] = 1
    gradient_dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", title="Dtype of the stored gradient field", description="sums are formed in float32"
    )
    batch_tokens: int = Field(
        1024,
        ge=1,
        title="Tokens per micro-batch",
        description="padding included",
        json_schema_extra=without_result(),
    )
    row_gradients: int = Field(
        2048,
        ge=0,
        title="Rows kept one by one",
        description="up to so many training rows, each row's gradient is kept in LoRA's start coordinates, and the "
        "prediction follows the trainer's own order of the rows; above, it draws from shards",
        json_schema_extra=without_result(),
    )


class SignalThresholds(BaseModel):
    """Where the landscape's numbers become signals."""

    model_config = ConfigDict(extra="forbid", title="Landscape signals")

    version: Literal[1] = 1
    dead_layer_norm: float = Field(1e-6, ge=0, title="Dead layer", description="mean gradient norm below this")
    spike_factor: float = Field(5.0, gt=0, title="Spike", description="mean max norm over factor x max_grad_norm")


@content_task(version=2)
def landscape_shard(
    draft: Any,
    run: Run,
    rows: ShardRows,
    role: str,
    model: ModelHandle,
    targets: AdapterTargets,
    hook_name: str | None,
    dpo_beta: float | None,
    settings: LandscapeSettings,
    coordinates: RowCoordinates | None = None,
) -> None:
    """Gradient sums, losses and per-batch norms of one shard, and each row's gradient in adapter coordinates."""
    import torch

    from foretune.tasks.numerics.gradients import GradientSum
    from foretune.tasks.numerics.objectives import Objective

    table = rows.read(run)
    loaded = model.open(run)
    weights = target_weights(loaded, targets)
    call = label_caller(loaded, list(weights))
    events, dtype = EventLog.of(run), getattr(torch, settings.gradient_dtype)
    total = GradientSum(Objective(dpo_beta), weights)
    steps: list[dict[str, Any]] = []
    losses: dict[int, tuple[float, float]] = {}
    rows_apart = RowsApart(loaded, weights, coordinates, len(table), dtype)
    with exclusive(loaded), rows_apart.taps as taps, captured_residuals(loaded, hook_name) as residuals:
        for minibatch in minibatches(table, settings.batch_tokens, loaded.device):
            with recomputed(loaded, total.leaves):
                measured = total.add(call, minibatch.batch, minibatch.rejected, residuals, taps=taps)
            rows_apart.keep(minibatch.rows, measured.rows)
            losses.update(zip(minibatch.rows, measured.sample_losses, strict=True))
            step = {
                "loss": measured.loss,
                "tokens": measured.tokens,
                "rows": len(minibatch.rows),
                "mean_grad_norm": measured.mean_norm,
                "max_grad_norm": measured.max_norm,
                "global_grad_norm": measured.global_norm,
                "layer_grad_norms": measured.module_norms,
            }
            steps.append(step)
            still = {"epoch": 0.0, "learning_rate": 0.0, "dead_layers": count_dead(measured.module_norms)}
            events.emit("step", task="landscape", role=role, shard=rows.shard.prefix, step=len(steps), **step, **still)
    if coordinates is not None:
        draft.write_tensors("rows.safetensors", rows_apart.kept)
    draft.write_tensors("gradients.safetensors", {name: g.to(dtype) for name, g in total.sums.items()})
    residual = {} if total.residual_sum is None else {"resid_grad_sum": total.residual_sum}
    draft.write_tensors("residual.safetensors", residual)
    draft.write_table("steps.parquet", steps)
    ids = table["sample_id"].to_pylist()
    pairs = [losses.get(row, (0.0, 0.0)) for row in range(len(ids))]
    draft.write_table(
        "samples.parquet",
        [
            {"sample_id": sample_id, "loss_sum": loss_sum, "tokens": tokens}
            for sample_id, (loss_sum, tokens) in zip(ids, pairs, strict=True)
        ],
    )
    draft.write_json("shard.json", {"rows": len(losses), "tokens": total.tokens, "modules": list(weights)})


@content_task(version=1, libraries=())
def landscape(
    draft: Any,
    run: Run,
    samples: ArtifactRef,
    shards: list[ArtifactRef],
    gradient: ArtifactRef,
    role: str,
    max_grad_norm: float,
    thresholds: SignalThresholds,
) -> None:
    """One landscape from its shards: mean gradient, steps, layers, per-sample losses, signals."""
    opened = [run.store.open(shard) for shard in shards]
    reduced = run.store.open(gradient)
    draft.link("gradients.safetensors", reduced.path("gradients.safetensors"))
    counts = reduced.json("counts.json")
    steps = [row for artifact in opened for row in artifact.arrow("steps.parquet").to_pylist()]
    draft.write_table("steps.parquet", [{"step": number, **row} for number, row in enumerate(steps, start=1)])
    layers = layer_table(counts["modules"], steps, counts["norms"], thresholds.dead_layer_norm)
    draft.write_table("layers.parquet", layers)
    draft.write_table("samples.parquet", _sample_losses(run, samples, opened))
    summary = landscape_summary(steps, layers, counts)
    summary["signals"] = landscape_signals(role, layers, steps, max_grad_norm, thresholds)
    draft.write_json("summary.json", summary)


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


def _sample_losses(run: Run, samples: ArtifactRef, opened: list[Any]) -> list[dict[str, Any]]:
    known = run.store.open(samples).arrow("samples.parquet", columns=["sample_id", "row"]).to_pylist()
    rows = {sample["sample_id"]: sample["row"] for sample in known}
    losses = [row for artifact in opened for row in artifact.arrow("samples.parquet").to_pylist()]
    return [
        {
            "sample_id": row["sample_id"],
            "row": rows[row["sample_id"]],
            "tokens": row["tokens"],
            "loss": row["loss_sum"] / row["tokens"] if row["tokens"] else None,
        }
        for row in losses
    ]


def count_dead(norms: list[float], thresholds: SignalThresholds | None = None) -> int:
    """Modules whose gradient norm is under the threshold, in one batch."""
    return sum(norm < (thresholds or SignalThresholds()).dead_layer_norm for norm in norms)


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
            {
                "name": "dead_layer",
                "severity": "warn",
                "value": len(dead),
                "threshold": thresholds.dead_layer_norm,
                "advice": f"{len(dead)} of {len(layers)} adapted modules get no gradient ({', '.join(dead[:3])}); "
                "leave them out of target_modules",
            }
        )
    spike = sum(step["max_grad_norm"] for step in steps) / len(steps)
    limit = thresholds.spike_factor * max_grad_norm
    if max_grad_norm and spike > limit:
        signals.append(
            {
                "name": "gradient_spike",
                "severity": "warn",
                "value": spike,
                "threshold": limit,
                "advice": "most steps would be clipped hard; lower learning_rate, add warm-up, or look at the rows "
                "with the largest loss",
            }
        )
    return signals
