"""Agreement of two results: against scipy, and against closed forms where there is one."""

from __future__ import annotations

import math

import pytest
import torch

from foretune.tasks.numerics.agreement import (
    Outcome,
    agreement,
    cosine,
    datamodeling_score,
    module_spearman,
    norm_ratio,
    pearson,
    ranks,
    share,
    spearman,
    top_sign_accuracy,
)

stats = pytest.importorskip("scipy.stats")


def series(seed: int, n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Two related series with many ties."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 7, (n,), generator=generator).double()
    return x, (x + torch.randint(0, 7, (n,), generator=generator)).double()


@pytest.mark.parametrize("seed", range(5))
def test_correlations_equal_scipys_with_ties(seed):
    x, y = series(seed)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x.numpy(), y.numpy()).statistic, abs=1e-12)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x.numpy(), y.numpy()).statistic, abs=1e-12)
    assert ranks(x).tolist() == stats.rankdata(x.numpy()).tolist()


def test_a_constant_series_has_no_correlation():
    constant, rising = torch.ones(4), torch.arange(4.0)
    assert math.isnan(pearson(constant, rising)) and math.isnan(spearman(rising, constant))


def test_cosine_and_ratio_go_over_all_modules_together():
    a = {"u": torch.tensor([[3.0]]), "v": torch.tensor([[4.0, 0.0]])}
    b = {"u": torch.tensor([[0.0]]), "v": torch.tensor([[2.0, 0.0]])}
    assert cosine(a, b) == pytest.approx(0.8)
    assert norm_ratio(a, b) == pytest.approx(2.5)
    assert cosine(a, {name: torch.zeros_like(t) for name, t in a.items()}) == 0.0
    assert math.isnan(norm_ratio(a, {name: torch.zeros_like(t) for name, t in a.items()}))


def test_the_layer_profile_compares_ranks_of_norms_by_name():
    a = {name: torch.full((2, 2), size) for name, size in (("x", 1.0), ("y", 2.0), ("z", 9.0))}
    b = {name: torch.full((2, 2), -size) for name, size in (("z", 3.0), ("y", 0.2), ("x", 0.1))}
    assert module_spearman(a, b) == pytest.approx(1.0)
    assert module_spearman({**a, "z": torch.zeros(2, 2)}, b) == pytest.approx(-0.5)


def test_the_share_is_one_for_the_real_loss_and_zero_for_the_base():
    assert share(4.0, 2.5, 2.5) == 1.0
    assert share(4.0, 4.0, 2.5) == 0.0
    assert share(4.0, 1.0, 2.5) == 2.0
    assert math.isnan(share(4.0, 1.0, 4.0))


def test_signs_are_judged_on_what_really_moved_most():
    real = torch.tensor([5.0, -4.0, 0.1, 0.0])
    assert top_sign_accuracy(torch.tensor([1.0, 1.0, -1.0, 1.0]), real, 2) == 0.5
    assert top_sign_accuracy(torch.tensor([1.0, -1.0, -1.0, 1.0]), real, 50) == pytest.approx(2 / 3)
    assert math.isnan(top_sign_accuracy(real, torch.zeros(4)))


def test_an_outcome_agrees_with_itself_on_every_figure():
    generator = torch.Generator().manual_seed(1)
    delta = {name: torch.randn(3, 4, generator=generator) for name in "abc"}
    outcome = Outcome(delta, 2.0, torch.randn(80, generator=generator))
    assert list(vars(agreement(outcome, outcome, 3.0)).values()) == pytest.approx([1.0] * 7)


def test_without_features_their_figures_are_none_and_not_zero():
    outcome = Outcome({"a": torch.ones(2, 2)}, 2.0)
    assert agreement(outcome, outcome, 3.0).feature_pearson is None


def test_the_datamodeling_score_is_the_mean_rank_correlation_over_queries():
    x, y = series(3, 12)
    predicted, real = torch.stack([x, x], dim=1), torch.stack([y, -y], dim=1)
    found = datamodeling_score(predicted, real)
    expected = stats.spearmanr(x.numpy(), y.numpy()).statistic
    assert found.score == pytest.approx(0.0)
    assert datamodeling_score(predicted[:, :1], real[:, :1]).score == pytest.approx(expected)
    assert datamodeling_score(predicted[:, 1:], real[:, 1:]).score == pytest.approx(-expected)


def test_the_interval_of_a_right_ranking_is_narrow_and_of_a_wrong_one_is_not():
    right = torch.arange(16.0).reshape(16, 1)
    shuffled = right[torch.randperm(16, generator=torch.Generator().manual_seed(2))]
    perfect, noise = datamodeling_score(right, right), datamodeling_score(shuffled, right)
    assert (perfect.score, perfect.low, perfect.high) == pytest.approx((1.0, 1.0, 1.0))
    assert noise.low < noise.score < noise.high and noise.high - noise.low > 0.3


def test_three_subsets_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="3 retrained subsets: give at least 4"):
        datamodeling_score(torch.zeros(3, 1), torch.zeros(3, 1))
