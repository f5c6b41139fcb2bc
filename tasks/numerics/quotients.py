"""Curvature along the gradient, module by module: K_ii = g_i . H_ii g_i / g_i . g_i."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foretune.tasks.numerics.batches import Batch
from foretune.tasks.numerics.curvature import CurvatureOperator
from foretune.tasks.numerics.losses import label_logits
from foretune.tasks.numerics.objectives import Call
from foretune.tasks.numerics.spaces import LoraSpace
from foretune.tasks.numerics.taps import Taps
from foretune.tasks.numerics.vectors import Vector


@dataclass(frozen=True)
class RayleighQuotients:
    values: dict[str, float]  # K_ii per module; nan where the gradient is zero
    standard_errors: dict[str, float] | None  # of the sampled mode only
    mode: str  # per_tensor | sampled
    products: int  # products, or backward passes when sampled, over the curvature sample


def rayleigh_quotients(operator: CurvatureOperator, gradient: Vector) -> RayleighQuotients:
    """K_ii of each module of `gradient`, in the operator's coordinates: exact, one product per module."""
    return RayleighQuotients(_over_squares(operator.blocks(gradient), gradient), None, "per_tensor", len(gradient))


def sampled_gradients(
    call: Call,
    weights: Vector,
    space: LoraSpace,
    batches: Sequence[Batch],
    modules: Mapping[str, nn.Module],
    draws: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Vector:
    """{name: [draws, rows, out, r]}: gradients of every row's loss under labels drawn from the model.

    The Fisher matrix of cross entropy is its Gauss-Newton matrix (Kunstner et al. 2019): these gradients are to it
    what it takes to read g . H g off for any direction g, see `quotients_of`. One forward pass, and a backward pass
    per draw. `modules` maps each weight's name to its linear module. Raises ValueError when no batch has a label.
    """
    generator = torch.Generator().manual_seed(seed)
    labelled = [batch for batch in batches if batch.label_tokens]
    if not labelled:
        raise ValueError(f"{len(batches)} curvature batches hold 0 label tokens: give rows that train")
    drawn = [_drawn(call, weights, space, batch, modules, draws, generator, dtype) for batch in labelled]
    return {name: torch.cat([each[name] for each in drawn], dim=1) for name in space.A}


def _drawn(
    call: Call,
    weights: Vector,
    space: LoraSpace,
    batch: Batch,
    modules: Mapping[str, nn.Module],
    draws: int,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> Vector:
    drawn: dict[str, list[Tensor]] = {name: [] for name in space.A}
    with Taps({name: modules[name] for name in space.A}) as taps, torch.enable_grad():
        log_p = label_logits(call(weights, batch), batch.labels).log_softmax(-1)  # [n, V]
        # Inverting the cumulative distribution costs a search a draw; torch.multinomial, a pass over [n, V].
        cumulative = log_p.detach().exp().cumsum(-1)
        inner = taps.inner(space.A)
        for _ in range(draws):
            level = torch.rand(len(log_p), 1, generator=generator).to(log_p) * cumulative[:, -1:]
            labels = torch.searchsorted(cumulative, level).clamp_(max=log_p.shape[-1] - 1)
            deltas = taps.output_gradients(-log_p.gather(-1, labels).sum(), retain_graph=True)
            for name, delta in deltas.items():
                gradient = torch.einsum("bso,bsr->bor", delta.to(inner[name]), inner[name]).mul_(space.scale)
                drawn[name].append(gradient.to(dtype))
    return {name: torch.stack(gradients) for name, gradients in drawn.items()}


def quotients_of(samples: Vector, tokens: float, gradient: Vector) -> RayleighQuotients:
    """Gauss-Newton K_ii of all modules along `gradient`, with standard errors, from `sampled_gradients`.

    s_r = <sample r's gradient in module i, g_i> has mean zero and sum_r E[s_r^2] = tokens * g_i . H_ii g_i. The
    relative error is about sqrt(2 / (draws * rows)). `tokens` is the label tokens of all rows together.
    """
    sums, errors = {}, {}
    for name, g in gradient.items():
        draws = samples[name].shape[0]
        squared = (samples[name].to(g).flatten(2) @ g.flatten()).double().square()  # [draws, rows]
        sums[name] = squared.mean(0).sum().item() / tokens
        spread = squared.var(0).sum().item() / draws if draws > 1 else math.inf
        errors[name] = math.sqrt(spread) / tokens
    products = samples[next(iter(gradient))].shape[0]
    return RayleighQuotients(_over_squares(sums, gradient), _over_squares(errors, gradient), "sampled", products)


def _over_squares(forms: dict[str, float], gradient: Vector) -> dict[str, float]:
    squares = {name: g.double().square().sum().item() for name, g in gradient.items()}
    return {name: form / squares[name] if squares[name] > 0.0 else math.nan for name, form in forms.items()}
