import math

import pytest
import torch

from foretune.tasks.numerics.curvature import gauss_newton, hessian
from foretune.tasks.numerics.quotients import quotients_of, rayleigh_quotients, sampled_gradients
from foretune.tasks.numerics.spaces import FullSpace, LoraSpace


def mean_gradient(toy):
    return toy.unflat(toy.sample_gradients().sum(0) / toy.tokens)


def dense_quotients(toy, matrix, gradient):
    quotients, start = {}, 0
    for name, g in gradient.items():
        block = matrix[start : start + g.numel(), start : start + g.numel()]
        start += g.numel()
        quotients[name] = (g.flatten() @ block @ g.flatten() / (g.flatten() @ g.flatten())).item()
    return quotients


@pytest.mark.parametrize("build, dense", [(gauss_newton, "dense_gauss_newton"), (hessian, "dense_hessian")])
def test_per_tensor_quotients_are_those_of_the_dense_diagonal_blocks(llama, build, dense):
    gradient = mean_gradient(llama)
    operator = build(llama.call, llama.weights, FullSpace(), llama.split(2, 3))
    found = rayleigh_quotients(operator, gradient)
    assert found.products == len(gradient) and operator.products == 0
    expected = dense_quotients(llama, getattr(llama, dense)(), gradient)
    assert found.values == pytest.approx(expected, rel=1e-2)


def sampled(toy, space, gradient, **options):
    samples = sampled_gradients(toy.call, toy.weights, space, toy.split(2, 3), toy.modules, **options)
    return quotients_of(samples, toy.tokens, gradient)


def whole_inputs(toy):
    """An adapter whose first factor leaves the inputs as they are: its coordinates are the weights themselves."""
    return LoraSpace({n: torch.eye(w.shape[1], dtype=w.dtype) for n, w in toy.weights.items()}, 1.0)


def test_sampled_quotients_agree_within_their_standard_errors(llama):
    gradient = mean_gradient(llama)
    expected = dense_quotients(llama, llama.dense_gauss_newton(), gradient)
    found = sampled(llama, whole_inputs(llama), gradient, draws=200)
    for name, value in expected.items():
        error = found.standard_errors[name]
        assert abs(found.values[name] - value) < 3.5 * error and error < 0.2 * value


def test_sampled_quotients_hold_in_adapter_coordinates_and_along_any_direction(llama):
    generator = torch.Generator().manual_seed(0)
    factors = {n: torch.randn(2, w.shape[1], generator=generator, dtype=w.dtype) for n, w in llama.weights.items()}
    space = LoraSpace(factors, 2.0)
    samples = sampled_gradients(llama.call, llama.weights, space, llama.split(2, 3), llama.modules, draws=300, seed=1)
    operator = gauss_newton(llama.call, llama.weights, space, llama.split(2, 3))
    mean = space.pull(mean_gradient(llama))
    other = {name: torch.randn(g.shape, generator=generator, dtype=g.dtype) for name, g in mean.items()}
    for direction in (mean, other):
        exact, found = rayleigh_quotients(operator, direction), quotients_of(samples, llama.tokens, direction)
        assert found.mode == "sampled"
        for name, value in exact.values.items():
            assert abs(found.values[name] - value) < 3.5 * found.standard_errors[name]


def test_samples_kept_in_half_precision_tell_the_same(llama):
    gradient, options = mean_gradient(llama), {"draws": 50, "seed": 3}
    found = sampled(llama, whole_inputs(llama), gradient, **options, dtype=torch.bfloat16)
    assert found.values == pytest.approx(sampled(llama, whole_inputs(llama), gradient, **options).values, rel=5e-3)


def test_one_draw_has_no_standard_error_and_a_seed_fixes_it(llama):
    gradient, space = mean_gradient(llama), whole_inputs(llama)
    one = sampled(llama, space, gradient, draws=1)
    assert all(math.isinf(e) for e in one.standard_errors.values())
    assert sampled(llama, space, gradient, draws=1).values == one.values
    assert sampled(llama, space, gradient, draws=1, seed=1).values != one.values


def test_a_zero_gradient_has_no_quotient(perceptron):
    operator = gauss_newton(perceptron.call, perceptron.weights, FullSpace(), [perceptron.batch])
    gradient = {n: torch.zeros_like(w) for n, w in perceptron.weights.items()}
    assert all(math.isnan(k) for k in rayleigh_quotients(operator, gradient).values.values())
