import pytest
import torch

from foretune.tasks.numerics.bounds import bounded


def test_a_delta_that_is_not_finite_is_never_applied():
    with pytest.raises(ValueError, match=r"the predicted delta of w is not finite: lower learning_rate"):
        bounded({"w": torch.tensor([[float("inf")]])}, {"w": torch.ones(1, 1)}, 0.25)


def test_a_delta_is_clipped_to_its_share_of_the_weight():
    applied = bounded({"w": torch.full((2, 2), 3.0)}, {"w": torch.ones(2, 2)}, 0.25)
    assert applied.clipped == ("w",)
    assert float(applied.delta["w"].norm()) == pytest.approx(0.25 * 2.0)
