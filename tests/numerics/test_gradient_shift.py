import pytest
import torch

from foretune.tasks.numerics.factored import Factored, dense
from foretune.tasks.numerics.gradient_shift import GradientShift

MEASURED = {"w": [torch.tensor([[2.0, -4.0]]), torch.tensor([[3.0, 0.0]])]}
SHIFT = GradientShift((0.1, 0.3), lambda point, name: MEASURED[name][point].to(torch.bfloat16))


@pytest.mark.parametrize(
    ("elapsed_lr", "expected"),
    [
        (0.05, [[1.0, -2.0]]),
        (0.1, [[2.0, -4.0]]),
        (0.2, [[2.5, -2.0]]),
        (0.3, [[3.0, 0.0]]),
        (0.7, [[3.0, 0.0]]),
    ],
)
def test_a_line_between_the_points_from_zero_at_the_base_on(elapsed_lr, expected):
    shift = SHIFT.at(elapsed_lr, "w")
    assert shift.dtype == torch.float32
    assert torch.allclose(shift, torch.tensor(expected))


@pytest.mark.parametrize("elapsed_lr", [0.0, 0.05, 0.1, 0.2, 0.7])
def test_a_mean_with_its_shift_in_factors_is_that_of_the_dense_ones(elapsed_lr):
    torch.manual_seed(1)
    lift = torch.randn(2, 5)
    mean, *points = (Factored(torch.randn(4, 2), lift, torch.randn(4, 3), torch.randn(3, 5)) for _ in range(3))
    thin = GradientShift((0.1, 0.3), lambda point, name: points[point])
    full = GradientShift((0.1, 0.3), lambda point, name: points[point].dense())
    expected = full.added(mean.dense(), elapsed_lr, "w")
    assert torch.allclose(dense(thin.added(mean, elapsed_lr, "w")), expected, atol=1e-5)
    shift = full.at(elapsed_lr, "w")
    assert torch.allclose(expected, mean.dense() if shift is None else mean.dense() + shift, atol=1e-6)


def test_there_is_no_shift_at_the_base_or_where_nothing_was_measured():
    assert SHIFT.at(0.0, "w") is None
    assert GradientShift((), SHIFT.read).at(0.2, "w") is None


def test_what_was_measured_is_not_written_to():
    before = {name: [t.clone() for t in points] for name, points in MEASURED.items()}
    plain = GradientShift((0.1, 0.3), lambda point, name: MEASURED[name][point])
    for elapsed_lr in (0.05, 0.1, 0.2, 0.3, 0.7):
        plain.at(elapsed_lr, "w").add_(1.0)
    assert all(torch.equal(a, b) for name in before for a, b in zip(before[name], MEASURED[name], strict=True))
