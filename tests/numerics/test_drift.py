import pytest
import torch

from foretune.tasks.numerics.drift import Drift

MEASURED = {"w": [torch.tensor([[2.0, -4.0]]), torch.tensor([[3.0, 0.0]])]}
DRIFT = Drift((0.1, 0.3), lambda point, name: MEASURED[name][point].to(torch.bfloat16))


@pytest.mark.parametrize(
    ("travel", "expected"),
    [
        (0.05, [[1.0, -2.0]]),
        (0.1, [[2.0, -4.0]]),
        (0.2, [[2.5, -2.0]]),
        (0.3, [[3.0, 0.0]]),
        (0.7, [[3.0, 0.0]]),
    ],
)
def test_a_line_between_the_points_from_zero_at_the_base_on(travel, expected):
    moved = DRIFT.at(travel, "w")
    assert moved.dtype == torch.float32
    assert torch.allclose(moved, torch.tensor(expected))


def test_nothing_has_moved_at_the_base_or_where_nothing_was_measured():
    assert DRIFT.at(0.0, "w") is None
    assert Drift((), DRIFT.read).at(0.2, "w") is None


def test_what_was_measured_is_not_written_to():
    before = {name: [t.clone() for t in points] for name, points in MEASURED.items()}
    plain = Drift((0.1, 0.3), lambda point, name: MEASURED[name][point])
    for travel in (0.05, 0.1, 0.2, 0.3, 0.7):
        plain.at(travel, "w").add_(1.0)
    assert all(torch.equal(a, b) for name in before for a, b in zip(before[name], MEASURED[name], strict=True))
