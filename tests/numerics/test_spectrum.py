import itertools
import math

import pytest
import torch

from foretune.tasks.numerics.spectrum import hutchinson_trace, lanczos, power_iteration

SPECTRUM = [10.0, 4.0, 3.0, 1.0, 0.5, 0.1, 0.0, 0.0]


def matvec_of(matrix):
    return lambda v: {"x": matrix @ v["x"]}


def like(d):
    return {"x": torch.zeros(d, dtype=torch.float64)}


@pytest.mark.parametrize("top", [10.0, -10.0])
def test_power_iteration_finds_the_largest_modulus_with_its_sign(matrix_with_spectrum, top):
    matrix = matrix_with_spectrum([top, *SPECTRUM[1:]], 0)
    found = power_iteration(matvec_of(matrix), like(8), iterations=30)
    assert found.eigenvalue == pytest.approx(top, rel=1e-6)
    assert found.residual < 1e-3 and len(found.history) == found.iterations == 30


def test_rayleigh_quotients_of_a_semi_definite_matrix_rise(matrix_with_spectrum):
    history = power_iteration(matvec_of(matrix_with_spectrum(SPECTRUM, 1)), like(8), iterations=10).history
    assert all(b >= a for a, b in itertools.pairwise(history)) and history[-1] <= 10.0


def test_some_eigenvalue_lies_within_the_residual(matrix_with_spectrum):
    for iterations in (1, 2, 3):
        found = power_iteration(matvec_of(matrix_with_spectrum(SPECTRUM, 2)), like(8), iterations)
        assert min(abs(found.eigenvalue - e) for e in SPECTRUM) <= found.residual


def test_power_iteration_of_zero_is_zero():
    assert power_iteration(lambda v: {"x": 0 * v["x"]}, like(4)).eigenvalue == 0.0


def test_lanczos_with_full_depth_gives_the_distinct_eigenvalues(matrix_with_spectrum):
    start = {"x": torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))}
    ritz = lanczos(matvec_of(matrix_with_spectrum(SPECTRUM, 3)), start, 8)
    assert ritz.values[-7:] == pytest.approx(sorted(set(SPECTRUM)), abs=1e-8)


def test_ritz_residuals_bound_the_distance_to_an_eigenvalue(matrix_with_spectrum):
    start = {"x": torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))}
    for k in (1, 2, 3, 4):
        ritz = lanczos(matvec_of(matrix_with_spectrum(SPECTRUM, 4)), start, k)
        assert ritz.products == k
        for value, residual in zip(ritz.values, ritz.residuals, strict=True):
            assert min(abs(value - e) for e in SPECTRUM) <= residual + 1e-9


def test_lanczos_beats_power_iteration_for_the_same_products(matrix_with_spectrum):
    matrix = matrix_with_spectrum([1.05**k for k in range(40)], 5)
    start = {"x": torch.ones(40, dtype=torch.float64)}
    largest = 1.05**39
    power = power_iteration(matvec_of(matrix), start, 6).eigenvalue
    assert abs(lanczos(matvec_of(matrix), start, 6).values[-1] - largest) < abs(power - largest)


def test_lanczos_stops_when_the_krylov_space_is_exhausted(matrix_with_spectrum):
    matrix = matrix_with_spectrum([2.0] * 6, 6)
    ritz = lanczos(matvec_of(matrix), {"x": torch.ones(6, dtype=torch.float64)}, 5)
    assert ritz.products == 1 and ritz.values == pytest.approx([2.0])


def test_lanczos_refuses_a_zero_start():
    with pytest.raises(ValueError, match=r"finite start and k >= 1, got norm 0\.0 and k=3"):
        lanczos(lambda v: v, like(4), 3)


def test_hutchinson_is_exact_on_a_diagonal_matrix():
    found = hutchinson_trace(matvec_of(torch.diag(torch.tensor(SPECTRUM, dtype=torch.float64))), like(8), 4)
    assert found.trace == pytest.approx(sum(SPECTRUM)) and found.standard_error == pytest.approx(0.0, abs=1e-12)


def test_hutchinson_lies_within_its_standard_error(matrix_with_spectrum):
    found = hutchinson_trace(matvec_of(matrix_with_spectrum(SPECTRUM, 7)), like(8), 400)
    assert abs(found.trace - sum(SPECTRUM)) < 3 * found.standard_error < 0.2 * sum(SPECTRUM)
    assert math.isinf(hutchinson_trace(matvec_of(torch.eye(8, dtype=torch.float64)), like(8), 1).standard_error)


def test_a_seed_fixes_every_estimate(matrix_with_spectrum):
    matvec = matvec_of(matrix_with_spectrum(SPECTRUM, 8))
    assert power_iteration(matvec, like(8), 3, seed=1) == power_iteration(matvec, like(8), 3, seed=1)
    assert hutchinson_trace(matvec, like(8), 3, seed=1) != hutchinson_trace(matvec, like(8), 3, seed=2)
