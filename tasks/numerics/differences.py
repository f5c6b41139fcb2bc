"""Directional derivatives from forward passes alone, for kernels that autograd cannot differentiate twice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foretune.tasks.numerics.vectors import Vector, norm

# Change of the output (rms; nats of a token loss, or logits) that a step is aimed at: where the error of
# rounding equals that of curvature. Measured on a 135M-parameter Llama in float32, per sample: central 6e-5
# at 1e-2 (1e-3 at a tenth or ten times that), one-sided 1e-3 at 3e-3.
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
    """Step along `direction` that changes `function` by about `change` (rms), from two evaluations.

    1.0 for a zero direction.
    """
    length = norm(direction)
    if length == 0.0:
        return 1.0
    reach = (norm({name: weights[name] for name in direction}) or 1.0) / length
    probe = PROBE * reach
    difference = function(perturbed(weights, direction, probe)) - function(weights)
    moved = difference.double().square().mean().sqrt().item()
    return min(probe * change / moved, LARGEST * reach) if moved > 0.0 else LARGEST * reach


def central(function: Callable[[Vector], Tensor], weights: Vector, direction: Vector, step: float) -> Tensor:
    """(f(w + h d) - f(w - h d)) / 2h."""
    ahead = function(perturbed(weights, direction, step))
    return (ahead - function(perturbed(weights, direction, -step))) / (2.0 * step)
