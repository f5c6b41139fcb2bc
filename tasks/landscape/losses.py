"""The losses of rows whose gradients are not measured: one forward, nothing kept for a backward."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from foretune.storage.runs import Run
from foretune.tasks.engine.keys import without_result
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import label_caller
from foretune.tasks.samples.minibatches import minibatches
from foretune.tasks.samples.rows import ShardRows


class ReadSettings(BaseModel):
    """The part of the settings that a forward over rows reads."""

    batch_tokens: int = Field(json_schema_extra=without_result())


@content_task(version=1)
def loss_shard(
    draft: Any, run: Run, rows: ShardRows, model: ModelHandle, dpo_beta: float | None, settings: ReadSettings
) -> None:
    """samples.parquet: loss_sum and label tokens of every row at the base weights, as `landscape_shard` stores them."""
    import torch

    from foretune.tasks.numerics.objectives import Objective

    table, loaded, objective = rows.read(run), model.open(run), Objective(dpo_beta)
    call, losses = label_caller(loaded, []), {}
    with device_lock(loaded), torch.no_grad():
        for minibatch in minibatches(table, settings.batch_tokens, loaded.device):
            found = objective.losses(call, {}, minibatch.batch, minibatch.rejected)
            pairs = zip(found.loss_sum.tolist(), found.tokens.tolist(), strict=True)
            losses.update(zip(minibatch.rows, pairs, strict=True))
    draft.write_table("samples.parquet", row_losses(table["sample_id"].to_pylist(), losses))


def row_losses(ids: list[str], losses: dict[int, tuple[float, float]]) -> list[dict[str, Any]]:
    """Summed loss and label tokens of every row; zero for a row without labels."""
    return [
        {"sample_id": sample_id, "loss_sum": loss_sum, "tokens": tokens}
        for sample_id, (loss_sum, tokens) in ((each, losses.get(row, (0.0, 0.0))) for row, each in enumerate(ids))
    ]
