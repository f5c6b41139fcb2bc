import pytest
import torch

from foretune.tasks.numerics.noise import gradient_noise_scale


def measured(tokens, dimension, signal, spread, seed):
    """Node gradients g + spread / sqrt(n_k) * normal, as the estimator sees them."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor(tokens, dtype=torch.float64)
    truth = torch.zeros(dimension, dtype=torch.float64)
    truth[0] = signal
    noise = torch.randn(len(tokens), dimension, generator=generator, dtype=torch.float64)
    nodes = truth + spread * noise / counts.sqrt()[:, None]
    mean = (counts[:, None] * nodes).sum(0) / counts.sum()
    return nodes.square().sum(1).tolist(), tokens, mean.square().sum().item()


def test_the_planted_noise_scale_is_found_with_unequal_nodes():
    truth = 2.0**2 * 50 / 0.5**2  # trace 200 over a squared signal of 1 / 4
    found = [
        gradient_noise_scale(*measured([100, 250, 400, 800, 50, 900, 300, 300], 50, 0.5, 2.0, seed))
        for seed in range(200)
    ]
    resolved = [f for f in found if f.noise_scale is not None]
    # tr / |G|^2 is biased upwards, its inverse is not
    assert sum(1 / f.noise_scale for f in resolved) / len(resolved) == pytest.approx(1 / truth, rel=0.05)
    assert sum(abs(f.noise_scale - truth) <= 2 * f.standard_error for f in resolved) > 120


def test_equal_nodes_without_noise_have_scale_zero():
    found = gradient_noise_scale([4.0] * 5, [10] * 5, 4.0)
    assert (found.noise_scale, found.standard_error) == (0.0, 0.0)


def test_the_scale_does_not_depend_on_the_units_of_the_loss():
    squares, tokens, mean = measured([100] * 16, 20, 1.0, 1.0, 0)
    small = gradient_noise_scale(squares, tokens, mean)
    large = gradient_noise_scale([100 * s for s in squares], tokens, 100 * mean)
    assert large.noise_scale == pytest.approx(small.noise_scale)
    assert large.standard_error == pytest.approx(small.standard_error)


def test_a_gradient_below_its_noise_is_not_resolved():
    found = gradient_noise_scale([1.0, 1.0], [10, 10], 0.3)
    assert found.noise_scale is None and found.standard_error is None


def test_empty_nodes_are_left_out_and_one_node_tells_nothing():
    full = gradient_noise_scale([2.0, 3.0, 0.0], [10, 20, 0], 1.5)
    assert full == gradient_noise_scale([2.0, 3.0], [10, 20], 1.5)
    assert gradient_noise_scale([2.0], [10], 2.0).noise_scale is None
