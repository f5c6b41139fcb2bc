"""Gradient fields over block sums that are in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from foretune.tasks.numerics.field import GradientField


def field_of(sums: Sequence[Mapping[str, Tensor]], tokens: Sequence[int], rows: Sequence[int]) -> GradientField:
    """A field whose blocks have these sums."""
    return GradientField(tuple(sums[0]), tuple(tokens), tuple(rows), lambda block, name: sums[block][name])
