"""The z of a feature's change among null deltas against draws whose law is known."""

from __future__ import annotations

import pytest
import torch

from foretune.tasks.numerics.activations import paired_change, split_half
from foretune.tasks.numerics.feature_nulls import pooled_nulls

FEATURES = 4000


def null_changes(draws: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Changes [draws, d] whose scales span two decades, whose spread in these differs, and that are not centred."""
    generator = torch.Generator().manual_seed(seed)
    own = 10 ** (2 * torch.rand(FEATURES, generator=generator) - 3)
    spread = own * torch.randn(6, FEATURES, generator=generator).square().mean(0).rsqrt()
    centre = 0.7 * own * torch.randn(FEATURES, generator=generator)
    changes = centre + spread * torch.randn(draws, FEATURES, generator=generator)
    errors = own * (0.8 + 0.4 * torch.rand(draws, FEATURES, generator=generator))
    return changes, errors


@pytest.mark.parametrize("draws", [4, 8, 16])
def test_a_fresh_null_is_marked_at_five_per_cent_as_often_as_that(draws):
    changes, errors = null_changes(draws + 1)
    z = pooled_nulls(changes[:-1], errors[:-1]).z(changes[-1])
    marked = float((z.abs() > 1.96).double().mean())
    assert 0.03 < marked < 0.07
    # Rows alone would mark far more: under every null a feature moves by more than sampling of rows explains.
    assert float((changes[-1].abs() > 1.96 * errors[-1]).double().mean()) > 2 * marked


def test_a_change_far_beyond_the_nulls_stands_out_and_one_within_does_not():
    changes, errors = null_changes(8)
    pooled = pooled_nulls(changes, errors)
    assert float((pooled.z(pooled.mean + 20 * pooled.sd) > 3).double().mean()) == 1.0
    assert float(pooled.z(pooled.mean).abs().max()) == 0.0
    above, below = (pooled.z(pooled.mean + side * pooled.sd) for side in (1, -1))
    assert torch.allclose(above, -below)


def test_a_feature_that_no_null_moves_gets_the_spread_of_those_that_hardly_do():
    changes, errors = null_changes(8)
    changes[:, 0] = errors[:, 0] = 0.0
    pooled = pooled_nulls(changes, errors)
    assert float(pooled.sd[0]) > 0 and float(pooled.z(torch.ones(FEATURES))[0]) > 3
    still = pooled_nulls(torch.zeros(4, 3), torch.zeros(4, 3))
    assert still.z(torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_one_draw_has_no_spread():
    with pytest.raises(ValueError, match="1 null draws have no spread; give at least 2"):
        pooled_nulls(torch.zeros(1, 3), torch.ones(1, 3))


def test_halves_are_the_changes_of_every_other_sample():
    base, tokens = torch.zeros(4, 2, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    new = torch.tensor([[1.0, 1.0], [2.0, -2.0], [3.0, 3.0], [4.0, -4.0]], dtype=torch.float64)
    halves = split_half(base, new, tokens)
    assert halves is not None
    assert halves.first.tolist() == [1.0, 1.0] and halves.second.tolist() == [1.0, -1.0]
    assert halves.same_sign.tolist() == [True, False]
    assert split_half(base[:1], new[:1], tokens[:1]) is None
    whole = paired_change(base, new, tokens)
    assert whole.change.tolist() == pytest.approx([1.0, -0.2])
    assert whole.z[1].item() == pytest.approx((whole.change / whole.error)[1].item())
