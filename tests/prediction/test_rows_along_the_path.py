"""How many rows may be measured again along the path."""

from __future__ import annotations

import pytest

from foretune.tasks.prediction.settings import PathSettings


@pytest.mark.parametrize(
    ("epochs", "settings", "again"),
    [
        (1, {}, 48),  # the base alone is all that half of the real run's samples pay for, and half a pass more
        (2, {}, 48),
        (3, {}, 48),
        (4, {}, 96),
        (9, {}, 192),  # gradient_passes
        (2, {"gradient_budget": 1}, 96),
        (2, {"gradient_budget": 0.1}, 48),
        (2, {"gradient_passes": 0.25}, 24),
        (9, {"gradient_passes": 0}, 0),
    ],
)
def test_half_a_pass_is_measured_again_whatever_the_budget(epochs, settings, again):
    assert PathSettings(**settings).rows_again(96, 96 * epochs) == again
