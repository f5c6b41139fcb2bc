"""The gradient noise scale: the batch size, in tokens, at which a gradient is as much signal as noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NoiseScale:
    noise_scale: float | None  # tokens; None when the gradient is not resolved from its noise
    standard_error: float | None  # tokens, from the spread between nodes


def gradient_noise_scale(node_squares: Sequence[float], tokens: Sequence[float], mean_square: float) -> NoiseScale:
    """B_simple = tr(Sigma) / |G|^2 (McCandlish et al. 2018, appendix A.1) from nodes of unequal size.

    `node_squares` [k]: squared norm of each node's token-mean gradient; `tokens` [k]; `mean_square`: squared
    norm of the gradient over all tokens. With E|g_k|^2 = |G|^2 + tr(Sigma) / n_k, the sum over nodes of n_k
    |g_k|^2 exceeds N |g|^2 by (k - 1) tr(Sigma) on average; both estimates are unbiased, their ratio is not.
    Nodes without tokens are left out; fewer than two give None. The standard error is the delta method's and
    counts only the spread of n_k |g_k|^2 between nodes: a lower bound for few nodes.
    """
    terms = [n * square for square, n in zip(node_squares, tokens, strict=True) if n > 0]
    total, count = sum(tokens), len(terms)
    if count < 2:
        return NoiseScale(None, None)
    noise = (sum(terms) - total * mean_square) / (count - 1)
    signal = mean_square - noise / total
    if not signal > 0.0:
        return NoiseScale(None, None)
    average = sum(terms) / count
    noise_error = math.sqrt(count * sum((t - average) ** 2 for t in terms) / (count - 1)) / (count - 1)
    # d(noise / (mean_square - noise / total)) / d noise = mean_square / signal^2
    error = noise_error * mean_square / signal**2
    return NoiseScale(max(noise, 0.0) / signal, error)
