"""How far a model's confidence departs from its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """sum_b n_b / n * |accuracy_b - confidence_b| over equal-width bins (Guo et al. 2017, equation 3).

    `confidence` [n] in [0, 1], `correct` [n] 0 or 1; bins are left-closed, the last one includes 1. nan
    without predictions.
    """
    if not confidence.numel():
        return float("nan")
    confidence, correct = confidence.double(), correct.double()
    index = (confidence * bins).long().clamp_(0, bins - 1)
    gaps = torch.bincount(index, weights=correct - confidence, minlength=bins)
    return gaps.abs().sum().item() / confidence.numel()
