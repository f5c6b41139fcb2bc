import math

import pytest
import torch

from foretune.tasks.numerics import vectors


def test_dot_and_norm_run_over_all_modules():
    a = {"x": torch.tensor([[1.0, 2.0]]), "y": torch.tensor([3.0])}
    b = {"y": torch.tensor([-1.0]), "x": torch.tensor([[4.0, 0.5]])}
    assert vectors.dot(a, b) == 2.0
    assert vectors.norm(a) == pytest.approx(math.sqrt(14.0))
    assert vectors.module_norms(a) == pytest.approx({"x": math.sqrt(5.0), "y": 3.0})


def test_dot_keeps_what_float32_accumulation_loses():
    a = {"x": torch.tensor([1e8, 1.0, -1e8])}
    ones = {"x": torch.ones(3)}
    assert vectors.dot(a, ones) == 1.0


def test_vectors_over_other_modules_do_not_match():
    with pytest.raises(ValueError, match="vectors of 1 and 2 modules do not match, first difference: y"):
        vectors.dot({"x": torch.zeros(1)}, {"x": torch.zeros(1), "y": torch.zeros(1)})


def test_arithmetic_leaves_its_arguments_alone():
    x, y = {"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([10.0, 20.0])}
    assert vectors.axpy(-2.0, x, y)["x"].tolist() == [8.0, 16.0]
    assert vectors.scale(3.0, x)["x"].tolist() == [3.0, 6.0]
    assert vectors.zeros_like(x)["x"].tolist() == [0.0, 0.0]
    assert x["x"].tolist() == [1.0, 2.0] and y["x"].tolist() == [10.0, 20.0]


def test_random_vectors_follow_their_seed_and_law():
    like = {"x": torch.zeros(1000, dtype=torch.float64)}
    draw = lambda seed, law: vectors.random_like(like, torch.Generator().manual_seed(seed), law)["x"]  # noqa: E731
    assert torch.equal(draw(1, "normal"), draw(1, "normal")) and not torch.equal(draw(1, "normal"), draw(2, "normal"))
    assert set(draw(1, "signs").tolist()) == {-1.0, 1.0} and draw(1, "signs").dtype == torch.float64


def test_one_bad_number_makes_a_vector_not_finite():
    assert vectors.is_finite({"x": torch.ones(2)})
    assert not vectors.is_finite({"x": torch.ones(2), "y": torch.tensor([math.inf])})
