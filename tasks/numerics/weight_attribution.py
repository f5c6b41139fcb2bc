"""Which weights carry the difference of a metric between two sets of them: integrated gradients on the straight line.

With W(a) = W0 + a (W1 - W0) for every weight, the metric grows by sum_m <dm/dW_m, W1_m - W0_m> da, so that the
integrals of the terms add up to the whole difference. With the one point a = 0 a term is the first-order effect of one
weight's change put into the base alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from foretune.tasks.numerics.quadrature import gauss_legendre


def weight_scores(
    base: Mapping[str, Tensor], moved: Mapping[str, Tensor], metric: Callable[[dict[str, Any]], Tensor], points: int
) -> dict[str, float]:
    """{name: share of the metric's difference, in its unit} of `metric(weights)`, a scalar.

    A scalar in front of every weight's change is what is differentiated in: no weight's gradient outlives its
    module.
    """
    names = sorted(base)
    scores = torch.zeros(len(names), dtype=torch.float64)
    for share, weight in gauss_legendre(points):
        gates = [torch.full((), share, dtype=base[n].dtype, device=base[n].device, requires_grad=True) for n in names]
        with torch.enable_grad():
            weights = {n: torch.lerp(base[n], moved[n].to(base[n]), g) for n, g in zip(names, gates, strict=True)}
            found = torch.autograd.grad(metric(weights), gates, materialize_grads=True)
        scores += weight * torch.stack([each.double().cpu() for each in found])
    return dict(zip(names, scores.tolist(), strict=True))
