"""Derivatives of every sample's loss along given directions, without any per-sample gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from foretune.tasks.numerics.batches import IGNORED, Batch
from foretune.tasks.numerics.differences import CENTRAL_CHANGE, ONE_SIDED_CHANGE, central, perturbed, step_size
from foretune.tasks.numerics.kernels import differentiable_attention
from foretune.tasks.numerics.losses import token_losses
from foretune.tasks.numerics.objectives import Call
from foretune.tasks.numerics.taps import Taps
from foretune.tasks.numerics.vectors import Vector

METHODS = ("forward", "difference", "one_sided")


def sample_derivatives(
    call: Call,
    weights: Vector,
    direction: Vector,
    batches: Sequence[Batch],
    method: str = "forward",
    base_losses: Tensor | None = None,
    step: float | None = None,
) -> Tensor:
    """[n] float64, d(summed loss of sample i) / d(weights along `direction`), in nats; rows in batch order.

    `forward`: forward-mode AD, exact, about 3 forward passes; needs eager or sdpa attention.
    `difference`: central difference, 2 passes, relative error 1e-4 in float32.
    `one_sided`: 1 pass against `base_losses` [n] (summed nats, same order, same kernels), error 1e-3 to 4e-3.
    `step` fixes the difference's step; by default the first labelled batch sets it (`step_along`): give one
    when batches change between runs. Raises ValueError for an unknown method, or too few base losses.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: choose one of {', '.join(METHODS)}")
    if method == "one_sided":
        rows = sum(batch.rows for batch in batches)
        if base_losses is None or base_losses.numel() != rows:
            given = "no" if base_losses is None else base_losses.numel()
            raise ValueError(f"one_sided needs one base loss per row: {given} given for {rows} rows")
    trained = next((batch for batch in batches if batch.label_tokens), None)
    if trained is None:
        return torch.zeros(sum(batch.rows for batch in batches), dtype=torch.float64)
    if step is None and method != "forward":
        step = step_along(call, weights, direction, trained, method)
    derivatives, seen = [], 0
    for batch in batches:
        if method == "one_sided":
            assert step is not None and base_losses is not None  # checked above
            with torch.no_grad():
                ahead = _losses(call, batch)(perturbed(weights, direction, step)).double().sum(-1)
            base = base_losses[seen : seen + batch.rows].to(ahead)
            derivatives.append((ahead - base) / step)
        else:
            derivatives.append(token_derivatives(call, weights, direction, batch, method, step).sum(-1))
        seen += batch.rows
    return torch.cat(derivatives)


def token_derivatives(
    call: Call,
    weights: Vector,
    direction: Vector,
    batch: Batch,
    method: str = "forward",
    step: float | None = None,
) -> Tensor:
    """[b, s-1] float64 nats: the derivative of each token's loss, by `forward` or `difference`.

    Column j is token j + 1, exactly 0 without a label. Raises ValueError for any other method.
    """
    if method not in ("forward", "difference"):
        raise ValueError(f"method={method!r} has no token derivatives: choose forward or difference")
    losses = _losses(call, batch)
    with torch.no_grad():
        if method == "forward":
            moved = {name: weights[name] for name in direction}
            tangent = {name: d.to(weights[name].dtype) for name, d in direction.items()}
            with differentiable_attention():
                return torch.func.jvp(lambda w: losses(weights | w), (moved,), (tangent,))[1].double()
        if step is None:
            step = step_along(call, weights, direction, batch, method)
        return central(lambda w: losses(w).double(), weights, direction, step)


@torch.no_grad()
def step_along(call: Call, weights: Vector, direction: Vector, batch: Batch, method: str) -> float:
    """A step that changes this batch's token losses by the amount at which rounding and curvature balance."""
    change = ONE_SIDED_CHANGE if method == "one_sided" else CENTRAL_CHANGE
    trained = batch.labels[:, 1:] != IGNORED
    losses = _losses(call, batch)
    return step_size(lambda w: losses(w)[trained], weights, direction, change)


def sample_dots(
    call: Call,
    weights: Vector,
    directions: Sequence[Vector],
    batches: Sequence[Batch],
    modules: Mapping[str, nn.Module],
) -> Tensor:
    """[n, k] float64 nats: the derivatives of `sample_derivatives` along k directions, exact.

    One forward and backward pass (no weight gradients) for all directions, and 0.1 forward passes for each (q
    and v of a 135M-parameter Llama): cheaper than differences from two directions on.
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
