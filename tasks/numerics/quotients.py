"""Curvature along the gradient, module by module: K_ii = g_i . H_ii g_i / g_i . g_i."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasks.numerics.batches import Batch
from tasks.numerics.curvature import CurvatureOperator
from tasks.numerics.losses import label_logits
from tasks.numerics.objectives import Call
from tasks.numerics.spaces import Space
from tasks.numerics.taps import Taps
from tasks.numerics.vectors import Vector


@dataclass(frozen=True)
class RayleighQuotients:
    values: dict[str, float]  # K_ii per module; nan where the gradient is zero
    standard_errors: dict[str, float] | None  # of the sampled mode only
    mode: str  # per_tensor | shared | sampled
    products: int  # products, or backward passes when sampled, over the curvature sample


def rayleigh_quotients(operator: CurvatureOperator, gradient: Vector, mode: str = "per_tensor") -> RayleighQuotients:
    """K_ii of each module of `gradient`, in the operator's coordinates.

    `per_tensor` is exact, one product per module. `shared` reads g_i . (H g)_i / g_i . g_i off a single
    product: it adds the coupling to the other modules' gradients, the curvature of moving all together.
    """
    if mode == "per_tensor":
        forms, products = operator.blocks(gradient), len(gradient)
    elif mode == "shared":
        product, products = operator.matvec(gradient), 1
        forms = {name: (g.double() * product[name].double()).sum().item() for name, g in gradient.items()}
    else:
        raise ValueError(f"mode={mode!r} is unknown: choose per_tensor or shared")
    return RayleighQuotients(_over_squares(forms, gradient), None, mode, products)


def sampled_rayleigh_quotients(
    call: Call,
    weights: Vector,
    space: Space,
    batches: Sequence[Batch],
    gradient: Vector,
    modules: Mapping[str, nn.Module],
    draws: int = 4,
    seed: int = 0,
) -> RayleighQuotients:
    """Gauss-Newton K_ii of all modules at once, from `draws` backward passes, with standard errors.

    With labels drawn from the model, s_r = <sample r's gradient in module i, g_i> has mean zero and
    sum_r E[s_r^2] = tokens * g_i . H_ii g_i, because the Fisher matrix of cross entropy is its Gauss-Newton
    matrix (Kunstner et al. 2019). The relative error is about sqrt(2 / (draws * rows)).
    `modules` maps each weight's name to its linear module. Raises ValueError when no batch has a label.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = space.lift(gradient)
    labelled = [batch for batch in batches if batch.label_tokens]
    if not labelled:
        raise ValueError(f"{len(batches)} curvature batches hold 0 label tokens: give rows that train")
    tokens = sum(batch.label_tokens for batch in labelled)
    sums, variances = dict.fromkeys(gradient, 0.0), dict.fromkeys(gradient, 0.0)
    for batch in labelled:
        squared = _squared_scores(call, weights, batch, direction, modules, draws, generator)
        for name, values in squared.items():
            sums[name] += values.mean(0).sum().item()
            variances[name] += values.var(0).sum().item() / draws if draws > 1 else math.inf
    values = _over_squares({name: total / tokens for name, total in sums.items()}, gradient)
    errors = _over_squares({name: math.sqrt(total) / tokens for name, total in variances.items()}, gradient)
    return RayleighQuotients(values, errors, "sampled", draws)


def _squared_scores(
    call: Call,
    weights: Vector,
    batch: Batch,
    direction: Vector,
    modules: Mapping[str, nn.Module],
    draws: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """{name: [draws, b] float64} squared directional derivatives of each row's loss under sampled labels."""
    squared: dict[str, list[Tensor]] = {name: [] for name in direction}
    with Taps({name: modules[name] for name in direction}) as taps, torch.enable_grad():
        log_p = label_logits(call(weights, batch), batch.labels).log_softmax(-1)  # [n, V]
        # Inverting the cumulative distribution costs a search a draw; torch.multinomial, a pass over [n, V].
        cumulative = log_p.detach().exp().cumsum(-1)
        for _ in range(draws):
            level = torch.rand(len(log_p), 1, generator=generator).to(log_p) * cumulative[:, -1:]
            labels = torch.searchsorted(cumulative, level).clamp_(max=log_p.shape[-1] - 1)
            deltas = taps.output_gradients(-log_p.gather(-1, labels).sum(), retain_graph=True)
            for name, score in taps.dots(deltas, direction).items():
                squared[name].append(score.double().square())
    return {name: torch.stack(scores) for name, scores in squared.items()}


def _over_squares(forms: dict[str, float], gradient: Vector) -> dict[str, float]:
    squares = {name: g.double().square().sum().item() for name, g in gradient.items()}
    return {name: form / squares[name] if squares[name] > 0.0 else math.nan for name, form in forms.items()}
