import pytest
import torch

from foretune.tasks.numerics.features import feature_scores


def test_a_feature_that_lowers_the_loss_is_strengthened():
    # Loss = -<direction, resid>: descent moves the residual along `direction`, so its feature grows.
    direction = torch.tensor([1.0, 0.0, 0.0])
    scores = feature_scores(-direction, torch.eye(3), torch.tensor([2.0, 3.0, 0.0]))
    assert scores.score.tolist() == [2.0, 0.0, 0.0]


def test_the_score_is_the_first_order_change_of_the_loss_along_active_features():
    generator = torch.Generator().manual_seed(0)
    W_dec, acts = torch.randn(6, 4, generator=generator), torch.rand(6, generator=generator)
    target = torch.randn(4, generator=generator)

    def loss(gains):
        return (((gains * acts) @ W_dec) - target).square().sum()

    gradient = 2 * (acts @ W_dec - target)
    expected = -torch.autograd.functional.jacobian(loss, torch.ones(6))
    assert torch.allclose(feature_scores(gradient, W_dec, acts).score, expected, rtol=1e-5, atol=1e-5)


def test_dormant_features_score_zero_but_show_their_push():
    scores = feature_scores(torch.tensor([1.0, 0.0]), torch.eye(2), torch.tensor([0.0, 1.0]))
    assert scores.dormant.tolist() == [True, False]
    assert scores.score[0] == 0.0


def test_a_misfit_names_both_sizes():
    with pytest.raises(ValueError, match=r"W_dec \(6, 4\) does not fit a gradient of 5 and 6 activations"):
        feature_scores(torch.zeros(5), torch.zeros(6, 4), torch.zeros(6))
