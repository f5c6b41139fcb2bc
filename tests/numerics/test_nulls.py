"""Random deltas have the norm and the rank that were asked for, and z is a standard normal's for a fresh one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm, t

from foretune.tasks.numerics.nulls import against_nulls, null_delta

WEIGHTS = {"a": torch.zeros(12, 30), "b": torch.zeros(20, 7), "n": torch.zeros(9)}
NORMS = {"a": 0.25, "b": 3.0, "n": 0.5}


@pytest.mark.parametrize("rank", [3, 8, 100, None])
def test_each_has_the_norm_and_the_rank_of_the_adapters(rank):
    delta = null_delta(WEIGHTS, NORMS, rank, 0)
    assert {name: float(change.norm()) for name, change in delta.items()} == pytest.approx(NORMS, rel=1e-6)
    for name in ("a", "b"):
        full = min(delta[name].shape)
        assert int(torch.linalg.matrix_rank(delta[name])) == min(rank or full, full)


def test_a_draw_is_the_same_again_and_no_other_one_or_module_shares_it():
    again, other = null_delta(WEIGHTS, NORMS, 4, 0), null_delta(WEIGHTS, NORMS, 4, 1)
    for name, change in null_delta(WEIGHTS, NORMS, 4, 0).items():
        assert torch.equal(change, again[name])
        cosine = torch.nn.functional.cosine_similarity(change.flatten(), other[name].flatten(), dim=0)
        assert abs(float(cosine)) < 0.9
    same = null_delta({"a": WEIGHTS["a"], "c": WEIGHTS["a"]}, {"a": 1.0, "c": 1.0}, 4, 0)
    assert not torch.allclose(same["a"], same["c"])


def test_a_module_that_does_not_move_gets_no_delta():
    assert float(null_delta(WEIGHTS, {"a": 0.0}, 4, 0)["a"].abs().max()) == 0.0


@pytest.mark.parametrize("draws", [4, 8, 30])
@pytest.mark.parametrize("sds", [-30.0, -2.0, 0.5, 3.0, 14.0])
def test_z_has_the_tail_of_students_t(draws, sds):
    nulls = np.random.default_rng(draws).normal(size=draws).tolist()
    mean, sd = np.mean(nulls), np.std(nulls, ddof=1)
    found = against_nulls(mean + sds * sd, nulls)
    assert found is not None and found.sds == pytest.approx(sds) and found.sd == pytest.approx(sd)
    tail = t(draws - 1).logsf(abs(sds) / np.sqrt(1 + 1 / draws))
    wanted = np.sign(sds) * -norm.ppf(np.exp(tail))
    assert found.z == pytest.approx(wanted, abs=0.06 + 0.02 * abs(wanted))


@pytest.mark.parametrize("draws", [4, 8])
def test_a_fresh_null_is_beyond_two_as_often_as_a_standard_normal(draws):
    rng = np.random.default_rng(7)
    beyond = [abs(against_nulls(x, rest).z) > 2 for x, *rest in rng.normal(3, 5, size=(8000, draws + 1)).tolist()]
    assert np.mean(beyond) == pytest.approx(2 * norm.sf(2), abs=0.008)


def test_without_a_spread_there_is_no_z():
    assert against_nulls(1.0, [0.5]) is None
    found = against_nulls(1.0, [0.5, 0.5])
    assert found is not None and found.z is None and found.sds is None
