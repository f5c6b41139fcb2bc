"""The interval against scipy's bootstrap and against the ratio estimator's closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from foretune.tasks.numerics import bootstrap as numerics
from foretune.tasks.numerics.bootstrap import paired_interval


def sample(rows: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 40, (rows,), generator=generator).double()
    return tokens * (0.2 + 0.3 * torch.randn(rows, generator=generator, dtype=torch.float64)), tokens


def test_the_interval_is_scipys():
    changes, tokens = sample()
    theirs = bootstrap(
        (changes.numpy(), tokens.numpy()),
        lambda change, token, axis: change.sum(axis) / token.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    ours = paired_interval(changes, tokens, draws=20_000)
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_its_half_width_is_twice_the_ratio_estimators_error():
    changes, tokens = sample(400)
    rate = changes.sum() / tokens.sum()
    error = float((changes - rate * tokens).std() * len(tokens) ** 0.5 / tokens.sum())
    found = paired_interval(changes, tokens, draws=8000)
    assert found is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert (found.high + found.low) / 2 == pytest.approx(float(rate), abs=0.1 * error)


def test_the_same_seed_draws_the_same_and_chunks_change_little(monkeypatch):
    changes, tokens = sample()
    assert paired_interval(changes, tokens) == paired_interval(changes, tokens)
    assert paired_interval(changes, tokens, seed=1) != paired_interval(changes, tokens)
    monkeypatch.setattr(numerics, "CHUNK", 100 * len(tokens))
    cut, whole = paired_interval(changes, tokens, draws=4000), paired_interval(changes, tokens, draws=4000, seed=2)
    assert cut is not None and whole is not None and cut.low == pytest.approx(whole.low, abs=0.01)


def test_one_row_has_no_interval():
    assert paired_interval(torch.ones(1), torch.ones(1)) is None
    assert paired_interval(torch.ones(5), torch.ones(5), draws=0) is None
