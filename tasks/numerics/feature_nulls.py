"""How far the change of every feature stands out from those that a few random deltas give it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FEW = 0.1  # quantile of the scales below which none may fall: a feature that hardly ever fires has no scale of its own


@dataclass(frozen=True)
class PooledNulls:
    """The nulls of every feature, their spread pooled over features as far as theirs are alike."""

    mean: Tensor  # [d] mean change under the nulls
    sd: Tensor  # [d] moderated standard deviation of a null change
    scale: Tensor  # [d] what a feature's changes are measured in when spreads are pooled
    freedom: float  # degrees of freedom of the moderated variance; inf where all features have the same spread
    draws: int

    def z(self, change: Tensor) -> Tensor:
        """[d] the standard normal's value of the same tail as `change` has among a fresh null's.

        t = (change - mean) / (sd sqrt(1 + 1/n)) is Student's with `freedom` degrees; Wallace's formula (1959) as in
        `nulls.against_nulls`. 0 where no feature ever moved.
        """
        error = self.sd * math.sqrt(1 + 1 / self.draws)
        t = torch.where(error > 0, (change - self.mean) / error.clamp_min(1e-300), 0.0)
        v = self.freedom
        if math.isinf(v):
            return t
        return t.sign() * (8 * v + 1) / (8 * v + 3) * (v * torch.log1p(t.square() / v)).sqrt()


def pooled_nulls(changes: Tensor, errors: Tensor) -> PooledNulls:
    """`changes` [n, d] of each feature under n null deltas, `errors` [n, d] their standard errors over rows.

    A feature that fires often moves more than one that hardly does: in units of its root mean square standard error
    features are alike, and their variances are drawn towards a common one by as much as they are alike (the moderated
    t-statistic: Smyth, "Linear models and empirical Bayes methods", 2004, section 6.2). Raises ValueError below 2.
    """
    n = len(changes)
    if n < 2:
        raise ValueError(f"{n} null draws have no spread; give at least 2")
    changes, own = changes.double(), errors.double().square().mean(0).sqrt()
    mean, fires = changes.mean(0), own > 0
    if not bool(fires.any()):
        return PooledNulls(mean, torch.zeros_like(mean), own, math.inf, n)
    scale = own.clamp_min(float(own[fires].quantile(FEW)))
    variance = (changes - mean).square().sum(0) / (n - 1) / scale.square()
    prior, weight = _prior(variance[fires & (variance > 0)], n - 1)
    pooled = prior if math.isinf(weight) else (weight * prior + (n - 1) * variance) / (weight + n - 1)
    sd = scale * torch.as_tensor(pooled, dtype=torch.float64).sqrt().expand_as(scale)
    return PooledNulls(mean, sd, scale, weight + n - 1, n)


def _prior(variances: Tensor, freedom: int) -> tuple[float, float]:
    """(s0^2, d0) of the scaled inverse chi-square that sample variances with `freedom` degrees are drawn from.

    Matches mean and variance of log s^2 (Smyth 2004, section 6.2); d0 is infinite where they spread no more than
    sampling makes them.
    """
    if variances.numel() < 2:
        return (float(variances.mean()) if variances.numel() else 0.0), math.inf
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    e = variances.log() - torch.digamma(half) + half.log()
    excess = float(e.var()) - float(torch.polygamma(1, half))
    if excess <= 0:
        return float(variances.mean()), math.inf
    d0 = 2 * _inverse_trigamma(excess)
    prior_half = torch.tensor(d0 / 2, dtype=torch.float64)
    return math.exp(float(e.mean() + torch.digamma(prior_half) - prior_half.log())), d0


def _inverse_trigamma(value: float) -> float:
    """y with trigamma(y) = value > 0, by Newton's method on 1 / trigamma, which is convex (Smyth 2004, appendix)."""
    if value > 1e7:
        return value**-0.5
    if value < 1e-6:
        return 1 / value
    y = torch.tensor(0.5 + 1 / value, dtype=torch.float64)
    for _ in range(50):
        trigamma = torch.polygamma(1, y)
        step = trigamma * (1 - trigamma / value) / torch.polygamma(2, y)
        y = y + step
        if abs(float(step / y)) < 1e-10:
            break
    return float(y)
