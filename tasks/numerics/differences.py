"""Directional derivatives from forward passes alone, for kernels that autograd cannot differentiate twice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tasks.numerics.vectors import Vector, norm

# Change of the output (rms; nats for losses, logits for logits) that a step is aimed at. A central difference errs
# by about change^2 (third derivative) and 1e-6 / change (rounding of a float32 forward), equal near 1e-2; a
# one-sided one by change / 2 and 1e-6 / change, equal near 1e-3.
CENTRAL_CHANGE = 1e-2
ONE_SIDED_CHANGE = 3e-3
PROBE = 1e-3  # first step, as a share of the norm of the weights that move
LARGEST = 3e-2  # the same share: no step goes further, however flat the output


def perturbed(weights: Vector, direction: Vector, step: float) -> Vector:
    """Weights moved by step * direction; `direction` may cover only some of them.

    Raises ValueError for half-precision weights, whose rounding exceeds the step.
    """
    for name in direction:
        if weights[name].dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"finite differences need float32 weights, {name} is {weights[name].dtype}: "
                "load the model in float32 or use automatic differentiation"
            )
    return weights | {name: torch.add(weights[name], d, alpha=step) for name, d in direction.items()}


def step_size(function: Callable[[Vector], Tensor], weights: Vector, direction: Vector, change: float) -> float:
    """Step along `direction` that changes `function` by about `change` (rms), from two evaluations."""
    length = norm(direction)
    if length == 0.0:
        return 1.0
    reach = norm({name: weights[name] for name in direction}) / length
    probe = PROBE * reach
    moved = (function(perturbed(weights, direction, probe)) - function(weights)).double().square().mean().sqrt().item()
    return min(probe * change / moved, LARGEST * reach) if moved > 0.0 else LARGEST * reach


def central(function: Callable[[Vector], Tensor], weights: Vector, direction: Vector, step: float) -> Tensor:
    """(f(w + h d) - f(w - h d)) / 2h."""
    ahead = function(perturbed(weights, direction, step))
    return (ahead - function(perturbed(weights, direction, -step))) / (2.0 * step)
