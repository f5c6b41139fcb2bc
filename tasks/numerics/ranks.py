"""How many vectors gradients in factors take: constants alone, so that a plan, which imports no torch, can count."""

from __future__ import annotations

RIGHT, LEFT = 2, 4
"""Random vectors per stored rank, at the input's and at the output's side: twice as many on the second side keep the
least-squares problem well posed (Tropp et al., section 4.5)."""
PROBES = 8  # vectors of signs: |E w|^2 is |E|^2 in the mean
SUM_RANKS, SHIFT_RANKS = 4, 2
"""Times a block's rank, in the mean over all blocks, and in its shift along a path."""


def sketch_numbers(outputs: int, inputs: int, start: int, rank: int) -> int:
    """Held while a gradient is measured: its sums, and the vectors that they are taken with."""
    sums = outputs * (start + RIGHT * rank + PROBES) + LEFT * rank * inputs
    return sums + inputs * (RIGHT * rank + PROBES + 2 * start) + LEFT * rank * outputs


def factored_numbers(outputs: int, inputs: int, start: int, rank: int) -> int:
    """Of one gradient in factors."""
    return outputs * (start + rank) + inputs * rank
