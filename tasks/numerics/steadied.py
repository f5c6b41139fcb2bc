"""A mean measured on few rows, taken for what stands out of its noise.

Along a path that is measured at many points on few rows each, what one mean gets wrong the next gets wrong otherwise,
and the path goes to and fro. So a new mean moves from the one before by a share of their difference: that of the
difference's square which noise does not explain (the positive part of James and Stein's estimator, here the gain of a
Kalman filter whose noise is measured on the spot).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from foretune.tasks.numerics.control_variate import MeanEstimate, Measured, deviations, shortened, tokens_of
from foretune.tasks.numerics.factored import Gradients, certain, difference, lerp
from foretune.tasks.numerics.field import GradientField


def steadied(
    field: GradientField, measured: Sequence[Measured], estimate: MeanEstimate, before: Gradients
) -> MeanEstimate:
    """The estimate with its mean between `before`, the mean so far, and the measured one.

    Weights count alike, each by how often its difference holds the square of its standard error.
    """
    left_out = 1 - tokens_of(measured) / sum(field.tokens)
    ratios = []
    for name in field.names:
        noise = left_out * _noise(field, measured, estimate.coefficient, name)
        if noise > 0:
            change = certain(difference(estimate.mean[name], before[name]))
            ratios.append(float(change.square().sum()) / noise)
    gain = 1.0 if not ratios else max(0.0, 1 - len(ratios) / max(sum(ratios), 1e-30))
    block = measured[0].block
    mean = {n: shortened(lerp(before[n], each, gain), field.read(block, n)) for n, each in estimate.mean.items()}
    return replace(estimate, mean=mean, gain=gain)


def _noise(field: GradientField, measured: Sequence[Measured], coefficient: float, name: str) -> float:
    """Squared standard error of an estimated mean, over the weight's [out, in].

    Of several blocks by how far they lie from each other, less what the control variate tells of that; one block has
    no other, so the base field's scatter stands in for it, as much larger or smaller as a gradient is now.
    """
    if len(measured) == 1:
        return _noise_of_one(field, measured[0], coefficient, name)
    total = 0.0
    for then, now, share in deviations(field, measured, name):
        total += float((now - coefficient * then).square().sum()) * share**2
    return total * len(measured) / (len(measured) - 1)


def _noise_of_one(field: GradientField, part: Measured, coefficient: float, name: str) -> float:
    """A part of a block is measured against what so few rows would have had at the base weights."""
    scatter, tokens = field.scatter(name), field.tokens[part.block]
    now = float((certain(part.sums[name]).float() / part.tokens).square().sum())
    then = float((certain(field.read(part.block, name)).float() / tokens).square().sum())
    then += scatter * (1 / part.tokens - 1 / tokens)
    return scatter * (1 - coefficient**2) / part.tokens * now / max(then, 1e-30)
