"""Sums over tokens of SAE feature activations, and of how well the SAE reconstructs the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class FeatureSums:
    """Additive statistics over a set of tokens; divide by `tokens` once, when all shards are added."""

    act_sum: Tensor  # [d_sae] sum of activations, float64
    fired: Tensor  # [d_sae] number of tokens with a positive activation, float64
    tokens: float = 0.0

    @classmethod
    def zeros(cls, d_sae: int) -> FeatureSums:
        return cls(torch.zeros(d_sae, dtype=torch.float64), torch.zeros(d_sae, dtype=torch.float64))

    def add(self, acts: Tensor) -> None:
        """Count activations [tokens, d_sae]."""
        self.act_sum += acts.sum(dim=0, dtype=torch.float64).cpu()
        self.fired += (acts > 0).sum(dim=0).cpu()
        self.tokens += acts.shape[0]

    def merge(self, other: FeatureSums) -> None:
        self.act_sum += other.act_sum
        self.fired += other.fired
        self.tokens += other.tokens

    @property
    def mean(self) -> Tensor:
        """Mean activation per token [d_sae]; zeros when no token was counted."""
        return self.act_sum / max(self.tokens, 1.0)

    @property
    def firing_rate(self) -> Tensor:
        """Share of tokens on which a feature is active [d_sae]."""
        return self.fired / max(self.tokens, 1.0)


@dataclass
class ReconstructionSums:
    """Additive terms of explained variance = 1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2."""

    error: float = 0.0
    square: float = 0.0
    total: Tensor | float = 0.0  # [d_in] sum of residuals
    tokens: float = 0.0

    def add(self, resid: Tensor, reconstruction: Tensor) -> None:
        """Count residuals [tokens, d_in] and the SAE's reconstructions of them."""
        self.error += float((resid - reconstruction).double().square().sum())
        self.square += float(resid.double().square().sum())
        self.total = self.total + resid.sum(dim=0, dtype=torch.float64).cpu()
        self.tokens += resid.shape[0]

    @property
    def explained_variance(self) -> float:
        """Share of the residual stream's variance that the SAE reproduces; 1 is perfect."""
        if not self.tokens:
            return float("nan")
        variance = self.square - float(torch.as_tensor(self.total).square().sum()) / self.tokens
        return 1.0 - self.error / variance


@dataclass(frozen=True)
class PairedChange:
    """Change of a mean between two models on the same samples."""

    base: Tensor  # [d] token-weighted mean under the base model
    new: Tensor  # [d] the same under the new model
    change: Tensor  # [d] new - base
    error: Tensor  # [d] its standard error over paired samples
    z: Tensor  # [d] change over its standard error; 0 where nothing varies


def paired_change(base_sums: Tensor, new_sums: Tensor, tokens: Tensor) -> PairedChange:
    """Per-sample activation sums [n, d] under both models and token counts [n] -> change with z.

    The mean is a ratio of sums; its standard error is the ratio estimator's,
    sqrt(n/(n-1) * sum (d_i - t_i * change)^2) / sum t_i with d_i the paired difference of sums
    (Cochran 1977, section 2.11).
    """
    total, n = tokens.sum(), tokens.numel()
    base, new = base_sums.sum(0) / total, new_sums.sum(0) / total
    change = new - base
    spread = (new_sums - base_sums - tokens[:, None] * change).square().sum(0)
    error = (spread * n / max(n - 1, 1)).sqrt() / total
    z = torch.where(error > 0, change / error.clamp_min(1e-30), torch.zeros_like(change))
    return PairedChange(base, new, change, error, z)


@dataclass(frozen=True)
class Halves:
    """The same change measured on either half of the samples, of which neither sees the other's."""

    first: Tensor  # [d] change on every other sample
    second: Tensor  # [d] on those between
    same_sign: Tensor  # [d] bool, both halves move, to the same side


def split_half(base_sums: Tensor, new_sums: Tensor, tokens: Tensor) -> Halves | None:
    """Per-sample activation sums [n, d] under both models, tokens [n]; None where a half has no token."""
    halves = [(new_sums[at::2] - base_sums[at::2], tokens[at::2].sum()) for at in (0, 1)]
    if any(float(total) == 0 for _, total in halves):
        return None
    first, second = (sums.sum(0) / total for sums, total in halves)
    return Halves(first, second, first * second > 0)
