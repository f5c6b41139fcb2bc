"""Derivatives of every sample's loss along given directions, without any per-sample gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from foretune.tasks.numerics.batches import Batch
from foretune.tasks.numerics.kernels import differentiable_attention
from foretune.tasks.numerics.losses import token_losses
from foretune.tasks.numerics.objectives import Call
from foretune.tasks.numerics.taps import Taps
from foretune.tasks.numerics.vectors import Vector


def sample_derivatives(call: Call, weights: Vector, direction: Vector, batches: Sequence[Batch]) -> Tensor:
    """[n] float64, d(summed loss of sample i) / d(weights along `direction`), in nats; rows in batch order.

    Forward-mode AD, exact, about 3 forward passes; needs eager or sdpa attention.
    """
    derivatives = [
        token_derivatives(call, weights, direction, batch).sum(-1)
        if batch.label_tokens
        else torch.zeros(batch.rows, dtype=torch.float64)
        for batch in batches
    ]
    return torch.cat(derivatives)


@torch.no_grad()
def token_derivatives(call: Call, weights: Vector, direction: Vector, batch: Batch) -> Tensor:
    """[b, s-1] float64 nats, the derivative of each token's loss: column j is token j + 1, 0 without a label."""
    losses = _losses(call, batch)
    moved = {name: weights[name] for name in direction}
    tangent = {name: d.to(weights[name].dtype) for name, d in direction.items()}
    with differentiable_attention():
        return torch.func.jvp(lambda w: losses(weights | w), (moved,), (tangent,))[1].double()


def sample_dots(
    call: Call,
    weights: Vector,
    directions: Sequence[Vector],
    batches: Sequence[Batch],
    modules: Mapping[str, nn.Module],
) -> Tensor:
    """[n, k] float64 nats: the derivatives of `sample_derivatives` along k directions, exact.

    One forward and backward pass (no weight gradients) for all directions, and 0.1 forward passes for each (q
    and v of a 135M-parameter Llama): cheaper than `sample_derivatives` from two directions on.
    `modules` maps each weight's name to its linear module; the directions must cover the same names.
    """
    rows = []
    for batch in batches:
        tapped = {name: modules[name] for name in directions[0]}
        with Taps(tapped) as taps, torch.enable_grad(), differentiable_attention():
            deltas = taps.output_gradients(_losses(call, batch)(weights).sum())
            columns = [torch.stack([*taps.dots(deltas, d).values()]).double().sum(0) for d in directions]
        rows.append(torch.stack(columns, dim=-1))
    return torch.cat(rows) if rows else torch.zeros(0, len(directions), dtype=torch.float64)


def _losses(call: Call, batch: Batch) -> Callable[[Vector], Tensor]:
    return lambda weights: token_losses(call(weights, batch), batch.labels)
