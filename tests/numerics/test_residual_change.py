"""Directions of a change against ones that were planted in it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from foretune.tasks.numerics.residual_change import mean_direction, moved_directions, principal_directions

ROWS, EACH, D = 24, 10, 48


def differences(seed: int = 0, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise with two planted directions: the first moves every token by 1 on average, the second by 0.5."""
    generator = torch.Generator().manual_seed(seed)
    planted = torch.linalg.qr(torch.randn(D, 2, generator=generator)).Q.T
    amounts = torch.tensor([1.0, 0.5]) * (1 + 0.2 * torch.randn(ROWS * EACH, 2, generator=generator))
    found = amounts @ planted + noise * torch.randn(ROWS * EACH, D, generator=generator)
    return found, torch.arange(ROWS).repeat_interleave(EACH), planted


def test_a_planted_direction_is_found_on_both_halves_with_the_change_along_it():
    found, rows, planted = differences()
    mean = moved_directions(found, rows, mean_direction)
    both = normalize(torch.tensor([1.0, 0.5]) @ planted, dim=0)
    assert float(mean.directions[0] @ both) > 0.99 and float(mean.stability[0]) > 0.98
    assert float(mean.change[0]) == pytest.approx(1.25**0.5, rel=0.05) and float(mean.z[0]) > 10
    principal = moved_directions(found, rows, principal_directions(3))
    assert float(principal.directions[0] @ both) > 0.99 and float(principal.stability[0]) > 0.98
    assert float(principal.share[0]) > 0.6
    assert float(principal.first[0]) == pytest.approx(float(principal.second[0]), rel=0.1)


def test_the_largest_of_pure_noise_is_not_told_to_move():
    """In sample it would be: the mean of noise always has a length."""
    noise, rows, _ = differences()
    noise = torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
    for fit in (mean_direction, principal_directions(4)):
        found = moved_directions(noise, rows, fit)
        assert float(found.z.abs().max()) < 3 and float(found.stability.abs().max()) < 0.9
    assert float((noise @ mean_direction(noise)[0]).mean()) > 0.3


def test_units_rows_and_their_order_do_not_matter():
    found, rows, _ = differences()
    one = moved_directions(found, rows, principal_directions(2))
    scaled = moved_directions(7 * found, 3 * rows + 2, principal_directions(2))
    torch.testing.assert_close(scaled.change, 7 * one.change, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scaled.z, one.z, rtol=1e-3, atol=1e-3)
    single = moved_directions(found[:EACH], rows[:EACH], mean_direction)
    assert single.stability is None and single.first is None and single.z.tolist() == [0.0]
    still = moved_directions(torch.zeros(20, D), rows[:20], principal_directions(2))
    assert still.change.tolist() == [0.0, 0.0] == still.z.tolist() == still.share.tolist()
