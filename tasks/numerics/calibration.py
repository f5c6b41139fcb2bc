"""How far a model's confidence departs from its accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReliabilityBins:
    """Predictions by confidence in bins of equal width, [bins] each; sums, divided where they are shown."""

    count: Tensor
    confidence: Tensor  # sum over the bin's predictions
    correct: Tensor  # how many of them came true


def reliability_bins(confidence: Tensor, correct: Tensor, bins: int = 15) -> ReliabilityBins:
    """`confidence` [n] in [0, 1], `correct` [n] 0 or 1; bins are left-closed, the last one includes 1."""
    confidence, correct = confidence.double(), correct.double()
    index = (confidence * bins).long().clamp_(0, bins - 1)
    return ReliabilityBins(
        torch.bincount(index, minlength=bins),
        torch.bincount(index, weights=confidence, minlength=bins),
        torch.bincount(index, weights=correct, minlength=bins),
    )


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """sum_b n_b / n * |accuracy_b - confidence_b| over equal-width bins (Guo et al. 2017, equation 3).

    nan without predictions.
    """
    if not confidence.numel():
        return float("nan")
    binned = reliability_bins(confidence, correct, bins)
    return (binned.correct - binned.confidence).abs().sum().item() / confidence.numel()
