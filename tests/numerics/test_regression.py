"""Scores of other rows: against fitting again, and the error that leaving rows out tells."""

from __future__ import annotations

import pytest
import torch

from foretune.tasks.numerics.regression import regressed


def drawn(rows: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [rows, 5] and scores [rows, 1] that are linear in two of them."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 5, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 10, 0.1, 1, 1]) + 3
    scores = features[:, :1] - 0.2 * features[:, 1:2]
    return features, scores + noise * torch.randn(rows, 1, generator=generator, dtype=torch.float64)


def test_a_linear_score_is_found_again():
    features, scores = drawn(60, noise=0.0)
    found = regressed(features[:40], scores[:40], features[40:])
    assert torch.allclose(found.scores, scores[40:], atol=0.02) and float(found.explained) > 0.999


def test_leaving_a_row_out_is_fitting_again_without_it():
    features, scores = drawn(30, noise=0.5)
    found = regressed(features, scores, features)
    x = (features - features.mean(0)) / features.std(0)
    values = torch.linalg.eigvalsh(x @ x.T).clamp_min(0)
    penalties = [10.0 ** (power / 2) * float(values.mean()) for power in range(-6, 9)]
    best = min(penalties, key=lambda penalty: left_out(x, scores, penalty).square().mean())
    assert torch.allclose(found.left_out, scores - left_out(x, scores, best), atol=1e-6)


def left_out(x: torch.Tensor, scores: torch.Tensor, penalty: float) -> torch.Tensor:
    wrong = []
    for row in range(len(x)):
        kept = [other for other in range(len(x)) if other != row]
        known, middle, mean = x[kept], scores[kept].mean(0), x[kept].mean(0)
        squares = (known - mean).T @ (known - mean) + penalty * torch.eye(x.shape[1], dtype=x.dtype)
        weights = torch.linalg.solve(squares, (known - mean).T @ (scores[kept] - middle))
        wrong.append(scores[row] - middle - (x[row] - mean) @ weights)
    return torch.stack(wrong)


def test_the_error_is_that_of_new_rows():
    features, scores = drawn(400, noise=0.5)
    found = regressed(features[:80], scores[:80], features[80:])
    real = (found.scores - scores[80:]).square().mean().sqrt()
    assert float(found.errors) == pytest.approx(float(real), rel=0.15)


def test_features_that_say_nothing_give_the_mean_and_say_so():
    generator = torch.Generator().manual_seed(1)
    features, scores = torch.ones(20, 2).double(), torch.randn(20, 1, generator=generator, dtype=torch.float64)
    found = regressed(features, scores, features[:3])
    assert torch.allclose(found.scores, scores.mean().expand(3, 1)) and float(found.explained) <= 0.0


def test_two_rows_are_refused():
    with pytest.raises(ValueError, match="2 measured rows"):
        regressed(torch.ones(2, 1), torch.ones(2, 1), torch.ones(1, 1))
