"""The losses of rows whose gradients are not measured: one forward, nothing kept for a backward."""

from __future__ import annotations

from typing import Any

from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.landscape.row_losses import row_losses
from foretune.tasks.loading import label_caller
from foretune.tasks.samples.minibatches import minibatches
from foretune.tasks.samples.rows import ReadSettings, ShardRows


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
