"""The mean gradient over all rows from those of a few that were measured elsewhere: a control variate.

What the few rows miss is known at the base weights, where every block was measured, and a part of it is missed still.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from foretune.tasks.numerics.factored import (
    Factored,
    Gradient,
    Gradients,
    axpy,
    certain,
    difference,
    dot,
    plus,
    weighted_sum,
)
from foretune.tasks.numerics.field import GradientField
from foretune.tasks.numerics.ranks import SUM_RANKS


@dataclass(frozen=True)
class Measured:
    """Gradients of rows of one block, of all of them or of a part, at weights that are not the base."""

    block: int
    sums: Gradients  # {name: [out, in]} of the summed loss
    tokens: float
    rows: int

    @classmethod
    def whole(cls, field: GradientField, block: int, sums: Gradients) -> Measured:
        return cls(block, sums, field.tokens[block], field.rows[block])


@dataclass(frozen=True)
class MeanEstimate:
    mean: Gradients  # {name: [out, in]} gradient of the token-mean loss over all blocks
    coefficient: float  # of the control variate: share of a block's deviation at the base weights that is left
    rows: int  # measured
    gain: float = 1.0  # share of the difference from the mean before that was taken over


def estimate_mean(field: GradientField, measured: Sequence[Measured]) -> MeanEstimate:
    """Mean gradient over the whole field from rows of some blocks S, measured elsewhere.

    mean(theta) ~ mean_S(theta) + c * (mean(0) - mean_S(0)), with the coefficient c between 0 and 1: at 1 the blocks
    S only say how far the mean has shifted, at 0 the stored field is not used.
    """
    now = {name: _mean([part.sums[name] for part in measured], tokens_of(measured)) for name in field.names}
    coefficient = _coefficient_of_one(field, measured[0], now) if len(measured) == 1 else _coefficient(field, measured)
    blocks, tokens = [part.block for part in measured], [part.tokens for part in measured]
    for name, mean in now.items():
        moved = plus(mean, difference(field.mean(name), field.group_mean(blocks, name, tokens)), coefficient)
        now[name] = shortened(moved, field.read(measured[0].block, name))
    return MeanEstimate(now, coefficient, sum(part.rows for part in measured))


def tokens_of(measured: Sequence[Measured]) -> float:
    return sum(part.tokens for part in measured)


def deviations(field: GradientField, measured: Sequence[Measured], name: str) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Of each block what is certain of its deviation from the mean of S, at the base weights and where it was
    measured, and its share of the tokens."""
    shares = [part.tokens / tokens_of(measured) for part in measured]
    then = [certain(field.group_mean([part.block], name)) for part in measured]
    now = [certain(part.sums[name]).float() / part.tokens for part in measured]
    base, mean = (sum(share * each for share, each in zip(shares, means, strict=True)) for means in (then, now))
    for before, there, share in zip(then, now, shares, strict=True):
        yield before - base, there - mean, share


def _mean(sums: Sequence[Gradient], tokens: float) -> Gradient:
    if isinstance(sums[0], Factored):
        parts = cast("Sequence[Factored]", sums)
        return weighted_sum(parts, SUM_RANKS * parts[0].rank) * (1 / tokens)
    return cast("Tensor", sum(cast("Tensor", each).float() for each in sums)) / tokens


def shortened(gradient: Gradient, block: Gradient) -> Gradient:
    """A mean in factors again no longer than the field's own."""
    if isinstance(gradient, Factored) and isinstance(block, Factored):
        return gradient.truncated(SUM_RANKS * block.rank)
    return gradient


def _coefficient(field: GradientField, measured: Sequence[Measured]) -> float:
    """Regression of the blocks' deviations from mean_S on those at the base weights, all weights together."""
    covariance = variance = 0.0
    for name in field.names:
        for before, there, _ in deviations(field, measured, name):
            covariance += float((before * there).sum())
            variance += float(before.square().sum())
    return _within_unit(covariance, variance)


def _coefficient_of_one(field: GradientField, part: Measured, now: Gradients) -> float:
    """One block has no mean to deviate from: the same regression on its part orthogonal to the field's mean."""
    base: Gradients = {name: certain(field.group_mean([part.block], name)) for name in field.names}
    mean: Gradients = {name: certain(field.mean(name)) for name in field.names}
    now = {name: certain(gradient) for name, gradient in now.items()}
    parallel = dot(base, mean) / dot(mean, mean)
    before = axpy(-parallel, mean, base)
    return _within_unit(dot(before, now), dot(before, before))


def _within_unit(covariance: float, variance: float) -> float:
    return min(1.0, max(0.0, covariance / variance)) if variance > 0 else 0.0
