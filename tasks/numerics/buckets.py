"""Rows put together by their lengths; needs no torch, so that a plan knows how much padding there will be."""

from __future__ import annotations

from collections.abc import Sequence

FULL = 8
"""A group of an eighth of the most tokens is large enough: a processor multiplies it as fast as a larger one."""
ALIKE = 0.8
"""To such a group no row is padded by more than a quarter of its own length."""


def buckets(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices grouped by length, longest first, each group within `max_tokens` (padded); equal lengths stay in order.

    A group that is large enough takes no row that is much shorter. Raises ValueError when a row alone exceeds
    `max_tokens`.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if order and lengths[order[0]] > max_tokens:
        raise ValueError(
            f"a row of {lengths[order[0]]} tokens exceeds max_tokens={max_tokens}: raise max_tokens or truncate rows"
        )
    groups: list[list[int]] = []
    for i in order:
        # Rows come longest first, so a group's first row sets its padded width.
        width, rows = (lengths[groups[-1][0]], len(groups[-1])) if groups else (0, 0)
        alike = lengths[i] >= ALIKE * width or width * rows * FULL < max_tokens
        if groups and width * (rows + 1) <= max_tokens and alike:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
