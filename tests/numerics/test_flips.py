"""Flips against a count by hand, and McNemar's test against scipy's binomial test."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from foretune.tasks.numerics.flips import flips, mcnemar


def test_pairs_are_counted_by_what_changed():
    found = flips(torch.tensor([-1.0, -1.0, 1.0, 1.0, 0.0, -2.0]), torch.tensor([1.0, 0.5, 1.0, -1.0, 1.0, -3.0]))
    assert (found.won_base, found.won_new, found.to_won, found.to_lost) == (2, 4, 3, 1)
    assert found.p_value == pytest.approx(binomtest(1, 4).pvalue)


@pytest.mark.parametrize(("up", "down"), [(0, 0), (0, 1), (3, 3), (12, 2), (400, 300), (2000, 1200)])
def test_the_test_is_the_exact_binomial_one(up, down):
    wanted = binomtest(min(up, down), up + down).pvalue if up + down else 1.0
    assert mcnemar(up, down) == pytest.approx(wanted, rel=1e-6)
