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
from foretune.tasks.inputs.factors import GRADIENTS, RECORD, FactorSettings, gradient_sum, record_of, write_gradients
from foretune.tasks.inputs.field import PerRowGradients, RowCoordinates
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.landscape.row_losses import row_losses
from foretune.tasks.landscape.signals import (
    SignalThresholds,
    landscape_signals,
    landscape_summary,
    layer_table,
)
from foretune.tasks.loading import AdapterTargets, label_caller, recomputed, target_weights
from foretune.tasks.loading.hooks import captured_residuals
from foretune.tasks.samples.dataset import row_numbers
from foretune.tasks.samples.minibatches import minibatches
from foretune.tasks.samples.rows import ReadSettings, ShardRows


class LandscapeSettings(BaseModel):
    """How the gradient field is measured and judged."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Landscape")

    version: Literal[1] = 1
    gradient_dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", title="Dtype of the stored gradient field", description="sums are formed in float32"
    )
    batch_tokens: int = Field(
        default=1024,
        ge=1,
        le=10**8,
        title="Tokens per micro-batch",
        description="padding included",
        json_schema_extra=without_result(),
    )
    graph_tokens: int | None = Field(
        default=None,
        ge=1,
        le=10**8,
        title="Tokens with a graph at once",
        description="of a micro-batch, at least a row; null: as many as a step of the training takes; of a field in "
        "factors the micro-batch itself is no larger",
        json_schema_extra=without_result(),
    )
    row_gradients: int = Field(
        default=2048,
        ge=0,
        le=10_000_000,
        title="Rows kept one by one",
        description="up to so many training rows, each row's gradient is kept in LoRA's start coordinates, and the "
        "prediction follows the trainer's own order of the rows; above, it draws from shards",
        json_schema_extra=without_result(),
    )

    storage: Literal["auto", "full", "factored"] = Field(
        default="auto",
        title="Storage of the gradient field",
        description="full: a whole gradient per node; factored: exact where a LoRA adapter starts, thin factors "
        "elsewhere, with the error measured; auto: factored where whole ones would take more than full_gb",
        json_schema_extra=without_result(),
    )
    storage_rank: int = Field(
        default=16,
        ge=1,
        le=4096,
        title="Rank of stored factors",
        description="of a gradient in factors, beside what is exact",
        json_schema_extra=without_result(),
    )
    full_gb: float = Field(
        default=20,
        ge=0,
        le=1e6,
        title="Largest whole field",
        description="GB, of auto",
        json_schema_extra=without_result(),
    )

    @property
    def reading(self) -> ReadSettings:
        """The part that a forward over rows reads."""
        return ReadSettings(batch_tokens=self.batch_tokens)

    @property
    def most_at_once(self) -> int:
        """Tokens of a micro-batch that a graph holds."""
        return min(self.batch_tokens, self.graph_tokens or self.batch_tokens)

    def micro_batch(self, factored: bool) -> int:
        """Tokens. In factors the norms that are told of a micro-batch take all of its tokens at once, so that it is no
        larger than a graph may be."""
        return self.most_at_once if factored else self.batch_tokens


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
    factors: FactorSettings | None = None,
) -> None:
    """Gradient sums, losses and per-batch norms of one shard, and each row's gradient in adapter coordinates.

    With `factors` the sums are measured and stored in these, and no weight's gradient is held.
    """
    import torch

    table = rows.read(run)
    loaded = model.open(run)
    weights = target_weights(loaded, targets)
    call = label_caller(loaded, list(weights))
    events, dtype = EventLog.of(run), getattr(torch, settings.gradient_dtype)
    total = gradient_sum(loaded, weights, dpo_beta, factors)
    steps: list[dict[str, Any]] = []
    losses: dict[int, tuple[float, float]] = {}
    per_row = PerRowGradients(loaded, weights, coordinates, len(table), dtype, tapped=factors is None)
    with device_lock(loaded), per_row.taps as taps, captured_residuals(loaded, hook_name) as residuals:
        tapped = {"taps": taps, "graph_tokens": settings.graph_tokens} if factors is None else {}
        for minibatch in minibatches(table, settings.micro_batch(factors is not None), loaded.device):
            with recomputed(loaded, total.leaves):
                measured = total.add(call, minibatch.batch, minibatch.rejected, residuals, **tapped)
            per_row.keep(minibatch.rows, measured.rows)
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
            # Nothing is trained: epoch and rate are zero. Dead layers are told from all batches, by `landscape`.
            at_base = {"epoch": 0.0, "learning_rate": 0.0}
            events.emit(
                "step", task="landscape", role=role, shard=rows.shard.prefix, step=len(steps), **step, **at_base
            )
    if coordinates is not None:
        draft.write_tensors("rows.safetensors", per_row.kept)
    described = write_sums(draft, total, dtype, factors, loaded.dtype)
    residual = {} if total.residual_sum is None else {"resid_grad_sum": total.residual_sum}
    draft.write_tensors("residual.safetensors", residual)
    draft.write_table("steps.parquet", steps)
    draft.write_table("samples.parquet", row_losses(table["sample_id"].to_pylist(), losses))
    counts = {"rows": len(losses), "tokens": total.tokens, "modules": list(weights)}
    draft.write_json("shard.json", {**counts, **described})


def write_sums(draft: Any, total: Any, dtype: Any, factors: FactorSettings | None, model_dtype: Any) -> dict[str, Any]:
    """gradients.safetensors, and what shard.json says of it: nothing of whole gradients."""
    if factors is None:
        write_gradients(draft, GRADIENTS, total.sums, dtype)
        return {}
    sums, errors = total.stored(dtype)
    write_gradients(draft, GRADIENTS, sums, dtype)
    return {RECORD: record_of(factors, model_dtype, errors)}


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
    read_only: list[ArtifactRef] | None = None,
) -> None:
    """One landscape from its shards: mean gradient, steps, layers, per-sample losses, signals.

    `read_only` are the losses of rows whose gradients were not measured.
    """
    opened = [run.store.open(shard) for shard in shards]
    reduced = run.store.open(gradient)
    draft.link("gradients.safetensors", reduced.path("gradients.safetensors"))
    counts = reduced.json("counts.json")
    steps = [row for artifact in opened for row in artifact.arrow("steps.parquet").to_pylist()]
    draft.write_table("steps.parquet", [{"step": number, **row} for number, row in enumerate(steps, start=1)])
    layers = layer_table(counts["modules"], steps, counts["norms"], thresholds.dead_layer_norm)
    draft.write_table("layers.parquet", layers)
    others = [run.store.open(shard) for shard in read_only or []]
    draft.write_table("samples.parquet", _sample_losses(run, samples, [*opened, *others]))
    summary = landscape_summary(steps, layers, counts)
    summary["signals"] = landscape_signals(role, layers, steps, max_grad_norm, thresholds)
    draft.write_json("summary.json", summary)


def _sample_losses(run: Run, samples: ArtifactRef, opened: list[Any]) -> list[dict[str, Any]]:
    numbers = row_numbers(run, samples)
    losses = [row for artifact in opened for row in artifact.arrow("samples.parquet").to_pylist()]
    return [
        {
            "sample_id": row["sample_id"],
            "row": numbers[row["sample_id"]],
            "tokens": row["tokens"],
            "loss": row["loss_sum"] / row["tokens"] if row["tokens"] else None,
        }
        for row in losses
    ]
