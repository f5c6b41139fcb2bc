"""A change taken back on a linear layer against its closed form, and verdicts against what was planted."""

from __future__ import annotations

import pytest
import torch

from foretune.tasks.numerics.interventions import cause_effect, drawn_features, of_equal_size, taken_back


def test_taking_back_removes_the_excess_along_one_direction_and_a_control_is_as_large() -> None:
    torch.manual_seed(0)
    hidden, excess, direction, other = torch.randn(2, 3, 4), torch.randn(2, 3), torch.randn(4), torch.randn(4)
    moved = taken_back(hidden, excess, direction)
    torch.testing.assert_close(hidden - moved, excess[..., None] * direction)
    control = taken_back(hidden, excess, of_equal_size(direction, other))
    torch.testing.assert_close((hidden - control).norm(dim=-1), (hidden - moved).norm(dim=-1))


def test_a_planted_cause_is_told_and_what_goes_along_carries_nothing() -> None:
    torch.manual_seed(1)
    tokens = torch.randint(5, 20, (40,)).double()
    base = 3 * tokens + torch.randn(40).double()
    predicted = base - 0.5 * tokens
    noise = [predicted + 0.02 * torch.randn(40).double() * tokens for _ in range(5)]
    gain = cause_effect(base, predicted, predicted + 0.2 * tokens, tokens, noise)
    assert gain.verdict == "gain" and gain.share == pytest.approx(0.4) and gain.effect == pytest.approx(0.2)
    assert gain.low is not None and gain.random is not None and gain.random < 0.02 < gain.low
    assert cause_effect(base, predicted, predicted - 0.1 * tokens, tokens, noise).verdict == "cost"
    idle = cause_effect(base, predicted, predicted + 0.02 * torch.randn(40).double() * tokens, tokens, noise)
    assert idle.verdict == "nothing" and idle.low is not None and idle.high is not None
    as_random = cause_effect(base, predicted, predicted + 0.2 * tokens, tokens, [predicted - 0.3 * tokens])
    assert as_random.verdict == "nothing" and as_random.random == pytest.approx(0.3)
    assert cause_effect(base, base, base + tokens, tokens, []).share is None


def test_controls_are_other_features() -> None:
    drawn = drawn_features(10, [1, 2], 6, seed=0)
    assert len(set(drawn)) == 6 and not {1, 2} & set(drawn) and drawn == drawn_features(10, [1, 2], 6, seed=0)
    assert len(drawn_features(2, [0, 1], 5, seed=0)) == 5
