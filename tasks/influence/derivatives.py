"""First order of influence: every sample's loss along the direction in which each target wants the weights to move."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import without_result
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import AdaptedModel, adapt, space_of
from foretune.tasks.inputs.field import per_row_gradients, stored_field
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.inputs.sample_values import SampleValues
from foretune.tasks.loading import AdapterSettings, lora_scale
from foretune.tasks.samples.minibatches import Minibatch, minibatches
from foretune.tasks.samples.rows import ShardRows

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.batches import Batch
    from foretune.tasks.numerics.preconditioner import Moments


class ScoringSettings(BaseModel):
    """How the pass over all samples is run."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Scoring pass")

    version: Literal[1] = 1
    batch_tokens: int = Field(
        default=1024, ge=1, le=10**8, title="Tokens per micro-batch", json_schema_extra=without_result()
    )


@content_task(version=1)
def influence_directions(
    draft: Any,
    run: Run,
    targets: ArtifactRef,
    nodes: list[ArtifactRef],
    adapter: AdapterSettings,
    seed: int,
    dtype: str,
    optimizer: str,
    rows_per_step: int,
    adam_epsilon: float,
) -> None:
    """directions.safetensors: {module: [targets, ...]}, what the optimizer makes of each target's gradient.

    For SGD the gradient itself; for AdamW times the derivative of Adam's expected step.
    """
    gradients = run.store.open(targets).tensors("targets.safetensors")  # [targets, ...] of every module
    if optimizer == "adamw":
        moments = batch_moments(run, nodes, adapter, seed, dtype, rows_per_step)
        gradients = {n: moments(n).adam(g.flatten(1), adam_epsilon).view_as(g) for n, g in gradients.items()}
    draft.write_tensors("directions.safetensors", gradients)


def batch_moments(
    run: Run, nodes: list[ArtifactRef], adapter: AdapterSettings, seed: int, dtype: str, rows_per_step: int
) -> Callable[[str], Moments]:
    """Moments of a module's batch gradient, flat: from per-row gradients, else from the blocks' scatter."""
    import torch

    from foretune.tasks.numerics.preconditioner import Moments, node_moments, row_moments

    kept = per_row_gradients(run, nodes, lora_scale(adapter)) if adapter.method == "lora" else None
    if kept is not None:
        tokens = torch.tensor(kept.tokens, dtype=torch.float32)
        return lambda name: row_moments(kept.block(name), tokens, rows_per_step)
    modules = tuple(run.store.open(nodes[0]).json("shard.json")["modules"])
    field = stored_field(run, nodes, modules)
    shapes = {name: tuple(field.read(0, name).shape) for name in modules}
    space = space_of(shapes, adapter, seed, getattr(torch, dtype))

    def of_nodes(name: str) -> Moments:
        found = node_moments(field, space, rows_per_step, name)
        return Moments(found.mean.flatten(), found.variance.flatten())

    return of_nodes


@content_task(version=2)
def influence_shard(
    draft: Any,
    run: Run,
    rows: ShardRows,
    solve: ArtifactRef | None,
    directions: ArtifactRef,
    adapter: AdapterSettings,
    seed: int,
    dpo_beta: float | None,
    settings: ScoringSettings,
    node: ArtifactRef | None = None,
    model: ModelHandle | None = None,
) -> None:
    """derivatives.safetensors: of every sample's summed loss, `lissa` [n], where there is a solve, and `preconditioned`
    [n, targets].

    From the per-row gradients of the block `node`; without one, by a forward and backward pass of `model`.
    """
    import torch

    table = rows.read(run)
    ids = table["sample_id"].to_pylist()
    solved, stored = solve and run.store.open(solve), run.store.open(directions)
    if node is not None:
        derivatives = _of_stored_rows(run, node, ids, solved, stored, lora_scale(adapter))
    else:
        adapted = adapt(model.open(run), adapter, seed)  # pyright: ignore[reportOptionalMemberAccess]
        columns = _columns(adapted, solved, stored)
        derivatives = torch.zeros(len(table), len(columns), dtype=torch.float64)
        with device_lock(adapted.loaded):
            for minibatch in minibatches(table, settings.batch_tokens, adapted.loaded.device):
                derivatives[list(minibatch.rows)] = directional(adapted, columns, minibatch, dpo_beta).cpu()
    of_solve = {"lissa": derivatives[:, 0].contiguous()} if solved else {}
    draft.write_tensors(
        "derivatives.safetensors", of_solve | {"preconditioned": derivatives[:, len(of_solve) :].contiguous()}
    )
    draft.write_json("samples.json", ids)


def _of_stored_rows(run: Run, node: ArtifactRef, ids: list[str], solved: Any, stored: Any, scale: float) -> Tensor:
    """[n, targets] float64, after LiSSA's where there is a solve; 0 for a row without a label, whose gradient was not
    kept."""
    import torch

    kept = per_row_gradients(run, [node], scale)
    assert kept is not None  # of one block at least
    directions = stored.tensor_file("directions.safetensors")
    solution = solved and solved.tensor_file("directions.safetensors")
    found: Any = 0.0
    for name in kept.names:
        columns = directions.get_tensor(name)
        if solution:
            columns = torch.cat([solution.get_tensor(name).unsqueeze(0), columns])
        found = found + (kept.block(name) @ columns.flatten(1).T).double()
    return SampleValues(kept.ids, found).spread_over(ids)


def _columns(adapted: AdaptedModel, solved: Any, stored: Any) -> list[dict[str, Tensor]]:
    """Weight directions: LiSSA's first, where there is a solve, then one per target."""
    directions = stored.tensors("directions.safetensors")
    solution = [solved.tensors("directions.safetensors")] if solved else []
    targets = len(next(iter(directions.values())))
    thetas = [*solution, *({name: d[target] for name, d in directions.items()} for target in range(targets))]
    placed = [{name: theta[name].to(w.device) for name, w in adapted.weights.items()} for theta in thetas]
    return [adapted.space.lift(theta) for theta in placed]


def directional(
    adapted: AdaptedModel, directions: list[dict[str, Tensor]], minibatch: Minibatch, dpo_beta: float | None
) -> Tensor:
    """[b, k] d loss_i along each direction; a DPO pair's is beta/2 (chosen - rejected) at the base weights."""
    import torch

    from foretune.tasks.numerics.scoring import sample_derivatives, sample_dots

    def dots(batch: Batch) -> Tensor:
        if adapted.modules is not None:
            return sample_dots(adapted.call, adapted.weights, directions, [batch], adapted.modules)
        columns = [sample_derivatives(adapted.call, adapted.weights, d, [batch]) for d in directions]
        return torch.stack(columns, dim=-1)

    if dpo_beta is None or minibatch.rejected is None:
        return dots(minibatch.batch)
    return dpo_beta / 2 * (dots(minibatch.batch) - dots(minibatch.rejected))
