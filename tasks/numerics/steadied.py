"""A mean measured on few rows, taken for what stands out of its noise.

Along a path that is measured at many points on few rows each, what one mean gets wrong the next gets wrong otherwise,
and the path goes to and fro. So a new mean moves from the one before by a share of their difference: that of the
difference's square which noise does not explain (the positive part of James and Stein's estimator, here the gain of a
Kalman filter whose noise is measured on the spot).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from foretune.tasks.numerics.factored import Gradient, certain, difference, lerp
from foretune.tasks.numerics.field import GradientField
from foretune.tasks.numerics.integrator import Gradients, MeanEstimate


def steadied(
    field: GradientField,
    blocks: Sequence[int],
    measured: Sequence[Gradients],
    estimate: MeanEstimate,
    before: Gradients,
) -> MeanEstimate:
    """The estimate with its mean between `before`, the mean so far, and the measured one.

    Weights count alike, each by how often its difference holds the square of its standard error.
    """
    left_out = 1 - sum(field.tokens[block] for block in blocks) / sum(field.tokens)
    ratios = []
    for name in field.names:
        noise = left_out * _noise(field, blocks, [each[name] for each in measured], estimate.coefficient, name)
        if noise > 0:
            change = certain(difference(estimate.mean[name], before[name]))
            ratios.append(float(change.square().sum()) / noise)
    gain = 1.0 if not ratios else max(0.0, 1 - len(ratios) / max(sum(ratios), 1e-30))
    mean = {name: lerp(before[name], each, gain) for name, each in estimate.mean.items()}
    return replace(estimate, mean=mean, gain=gain)


def _noise(
    field: GradientField, blocks: Sequence[int], measured: Sequence[Gradient], coefficient: float, name: str
) -> float:
    """Squared standard error of an estimated mean, over the weight's [out, in].

    Of several blocks by how far they lie from each other, less what the control variate tells of that; one block has
    no other, so the base field's scatter stands in for it, as much larger or smaller as the block's gradient is now.
    """
    tokens = sum(field.tokens[block] for block in blocks)
    if len(blocks) == 1:
        now, then = (certain(each).float().square().sum() for each in (measured[0], field.read(blocks[0], name)))
        return field.scatter(name) * (1 - coefficient**2) / tokens * float(now / then.clamp_min(1e-30))
    mean = sum(certain(each).float() for each in measured) / tokens
    base, total = certain(field.group_mean(blocks, name)), 0.0
    for block, each in zip(blocks, measured, strict=True):
        now = certain(each).float() / field.tokens[block] - mean
        then = certain(field.group_mean([block], name)) - base
        total += float((now - coefficient * then).square().sum()) * (field.tokens[block] / tokens) ** 2
    return total * len(blocks) / (len(blocks) - 1)
