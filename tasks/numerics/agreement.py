"""How far two results agree: deltas, rankings, feature changes, and influence scores against retraining."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foretune.tasks.numerics.vectors import Vector, dot, norm


def cosine(a: Vector, b: Vector) -> float:
    """Cosine of two deltas {name: [out, in]}; 0 where one does not move."""
    size = norm(a) * norm(b)
    return dot(a, b) / size if size else 0.0


def norm_ratio(a: Vector, b: Vector) -> float:
    """|a| / |b|; not a number where `b` does not move."""
    size = norm(b)
    return norm(a) / size if size else float("nan")


def module_spearman(a: Vector, b: Vector) -> float:
    """Rank correlation of the norms that the modules of `b` moved by."""
    return spearman(*(torch.stack([delta[name].double().norm() for name in b]) for delta in (a, b)))


def share(base: float, predicted: float, real: float) -> float:
    """Part of the real change of a loss that the prediction reproduces; 1 is all of it."""
    return (base - predicted) / (base - real) if base != real else float("nan")


def pearson(x: Tensor, y: Tensor) -> float:
    """Linear correlation of two [n] series; not a number where one is constant."""
    x, y = (series.double() - series.double().mean() for series in (x, y))
    size = float(x.norm() * y.norm())
    return float(x @ y) / size if size else float("nan")


def spearman(x: Tensor, y: Tensor) -> float:
    """Rank correlation of two [n] series, ties at their mean rank."""
    return pearson(ranks(x), ranks(y))


def ranks(series: Tensor) -> Tensor:
    """[n] float64 ranks from 1, equal values at the mean of theirs."""
    _, position, counts = series.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[position]


def top_sign_accuracy(predicted: Tensor, real: Tensor, k: int = 50) -> float:
    """Share of right signs among the k features [d] that really changed most; those that did not are left out."""
    top = real.abs().topk(min(k, real.numel())).indices
    top = top[real[top] != 0]
    return float((predicted[top].sign() == real[top].sign()).double().mean()) if top.numel() else float("nan")


@dataclass(frozen=True)
class Outcome:
    """What one fine-tune does, really or by prediction."""

    delta: Vector  # weight change {name: [out, in]}
    loss: float  # held-out, after it
    features: Tensor | None = None  # [d_sae] change of the mean feature activation


@dataclass(frozen=True)
class Agreement:
    """How far one outcome is another; None where there are no features, not a number where nothing varies."""

    cosine: float
    norm_ratio: float
    share: float
    module_spearman: float
    feature_pearson: float | None = None
    feature_spearman: float | None = None
    feature_sign50: float | None = None


def agreement(predicted: Outcome, real: Outcome, base_loss: float) -> Agreement:
    """The figures of `predicted`, with `real` as the truth and `base_loss` the held-out loss before both."""
    x, y = predicted.features, real.features
    return Agreement(
        cosine(predicted.delta, real.delta),
        norm_ratio(predicted.delta, real.delta),
        share(base_loss, predicted.loss, real.loss),
        module_spearman(predicted.delta, real.delta),
        *(() if x is None or y is None else (pearson(x, y), spearman(x, y), top_sign_accuracy(x, y))),
    )


@dataclass(frozen=True)
class DatamodelingScore:
    """Linear datamodeling score (Park et al., arXiv 2303.14186): rank correlation over subsets, mean over queries."""

    score: float
    low: float  # 95 % interval, subsets resampled
    high: float


def datamodeling_score(predicted: Tensor, real: Tensor, resamples: int = 500, seed: int = 0) -> DatamodelingScore:
    """Scores of [subsets, queries] predicted against really retrained losses.

    Raises ValueError for fewer than four subsets: a rank correlation of three says nothing.
    """
    subsets = real.shape[0]
    if subsets < 4:
        raise ValueError(f"{subsets} retrained subsets: give at least 4")
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(resamples):
        chosen = torch.randint(subsets, (subsets,), generator=generator)
        drawn.append(_mean(_per_query(predicted[chosen], real[chosen])))
    low, high = torch.tensor(drawn, dtype=torch.float64).nanquantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return DatamodelingScore(_mean(_per_query(predicted, real)), low, high)


def _per_query(predicted: Tensor, real: Tensor) -> list[float]:
    return [spearman(predicted[:, query], real[:, query]) for query in range(real.shape[1])]


def _mean(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).nanmean())
