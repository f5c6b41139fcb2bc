"""First order of influence for rows whose gradients are not measured: their losses a small step along the direction."""

from __future__ import annotations

from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.samples.minibatches import minibatches
from foretune.tasks.samples.rows import ReadSettings, ShardRows

STEP = 0.02
"""Nats per token by which the first target changes, to first order, over the step: far above float32's digits of a
loss, and near enough for a straight line (SmolLM2, conversations: correlation 0.99 with the exact derivative)."""


@content_task(version=1)
def influence_difference(
    draft: Any,
    run: Run,
    rows: ShardRows,
    losses: ArtifactRef,
    directions: ArtifactRef,
    targets: ArtifactRef,
    model: ModelHandle,
    adapter: AdapterSettings,
    seed: int,
    dpo_beta: float | None,
    settings: ReadSettings,
) -> None:
    """differences.safetensors: `preconditioned` [n], the derivative of every row's summed loss along the first
    target's direction, from `losses` at the base weights and one forward beside them.

    That is what `influence_shard` stores in its first column for rows with gradients.
    """
    import torch

    from foretune.tasks.numerics.objectives import Objective
    from foretune.tasks.numerics.vectors import dot

    adapted = adapt(model.open(run), adapter, seed)
    wanted, gradient = (
        {name: values[0].to(adapted.loaded.device) for name, values in run.store.open(part).tensors(file).items()}
        for part, file in ((directions, "directions.safetensors"), (targets, "targets.safetensors"))
    )
    reached = dot(wanted, gradient)
    step = STEP / abs(reached) if reached else 0.0
    weights = adapted.moved_by(adapted.space.lift({name: step * theta for name, theta in wanted.items()}))
    table, objective = rows.read(run), Objective(dpo_beta)
    base = run.store.open(losses).arrow("samples.parquet", columns=["loss_sum"])["loss_sum"].to_pylist()
    found = torch.zeros(len(table), dtype=torch.float64)
    with device_lock(adapted.loaded), torch.no_grad():
        for minibatch in minibatches(table, settings.batch_tokens, adapted.loaded.device):
            moved = objective.losses(adapted.call, weights, minibatch.batch, minibatch.rejected).loss_sum.double().cpu()
            before = torch.tensor([base[row] for row in minibatch.rows], dtype=torch.float64)
            found[list(minibatch.rows)] = (moved - before) / step if step else 0.0 * before
    draft.write_tensors("differences.safetensors", {"preconditioned": found})
    draft.write_json("samples.json", table["sample_id"].to_pylist())
