import math

import pytest
import torch

from foretune.tasks.numerics.curvature import gauss_newton
from foretune.tasks.numerics.lissa import SEED_SCALE, DivergedSolve, LissaPlan, conjugate_gradient, lissa, tune
from foretune.tasks.numerics.spaces import FullSpace
from foretune.tasks.numerics.spectrum import hutchinson_trace, lanczos

SPECTRUM = [8.0, 5.0, 3.0, 2.0, 1.0, 0.3, 0.05, 0.0]


def operator_of(matrix):
    return lambda v: {"x": matrix @ v["x"]}


def right_side(d=8, seed=0):
    return {"x": torch.randn(d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))}


def damped_inverse(matrix, damping, v):
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=torch.float64), v["x"])


def test_a_converged_solve_is_the_exact_damped_inverse(matrix_with_spectrum):
    matrix, v = matrix_with_spectrum(SPECTRUM, 0), right_side()
    solve = lissa(operator_of(matrix), v, LissaPlan(iterations=400, damping=0.1, scale=10.0, tolerance=1e-10))
    assert solve.status == "converged" and solve.advice == ""
    assert solve.effective_damping == pytest.approx(1.0)
    assert torch.allclose(solve.solution["x"], damped_inverse(matrix, 1.0, v), rtol=1e-8, atol=1e-10)


def test_the_iterate_is_the_truncated_neumann_series(matrix_with_spectrum):
    matrix, v = matrix_with_spectrum(SPECTRUM, 1), right_side()
    step = torch.eye(8, dtype=torch.float64) * (1 - 0.01) - matrix / 25.0
    series = sum(torch.linalg.matrix_power(step, k) @ v["x"] for k in range(11)) / 25.0
    solve = lissa(operator_of(matrix), v, LissaPlan(scale=SEED_SCALE))
    assert torch.allclose(solve.solution["x"], series, rtol=1e-12)
    assert (solve.iterations, solve.scale, solve.damping, solve.products) == (10, 25.0, 0.01, 10)


def test_residuals_are_those_of_the_iterates(matrix_with_spectrum):
    matrix, v = matrix_with_spectrum(SPECTRUM, 2), right_side()
    residuals = lissa(operator_of(matrix), v, LissaPlan(iterations=6, damping=0.05, scale=9.0)).residuals
    for k in range(1, 6):
        x = lissa(operator_of(matrix), v, LissaPlan(iterations=k, damping=0.05, scale=9.0)).solution["x"]
        exact = torch.linalg.norm(matrix @ x + 0.45 * x - v["x"]) / torch.linalg.norm(v["x"])
        assert residuals[k] == pytest.approx(exact.item(), rel=1e-9)


def test_a_solve_costs_one_product_an_iteration(matrix_with_spectrum):
    matrix, calls = matrix_with_spectrum(SPECTRUM, 3), []

    def counting(v):
        calls.append(1)
        return {"x": matrix @ v["x"]}

    solve = lissa(counting, right_side(), LissaPlan(iterations=7))
    assert len(calls) == solve.products == 7 + 4 and solve.iterations == len(solve.residuals) == 7


def test_the_automatic_scale_exceeds_what_stability_needs(matrix_with_spectrum):
    for seed in range(5):
        matrix = matrix_with_spectrum([50.0 * 0.8**k for k in range(60)], seed)
        solve = lissa(operator_of(matrix), right_side(60, seed), LissaPlan(iterations=200))
        assert 25.0 < solve.scale < 100.0
        assert all(b <= a for a, b in zip(solve.residuals, solve.residuals[1:], strict=False))


def test_the_automatic_scale_follows_the_units_of_the_loss(matrix_with_spectrum):
    matrix, v = matrix_with_spectrum(SPECTRUM, 4), right_side()
    one, thousand = lissa(operator_of(matrix), v), lissa(operator_of(1000 * matrix), v)
    assert thousand.residuals == pytest.approx(one.residuals)
    assert torch.allclose(1000 * thousand.solution["x"], one.solution["x"])


def test_a_scale_below_half_the_largest_eigenvalue_diverges_loudly(matrix_with_spectrum):
    with pytest.raises(DivergedSolve, match=r"scale 2 is too small for curvature .*raise it above") as caught:
        lissa(operator_of(matrix_with_spectrum(SPECTRUM, 5)), right_side(), LissaPlan(scale=2.0))
    assert len(caught.value.residuals) < 10


def test_negative_curvature_diverges_before_it_ranks(matrix_with_spectrum):
    matrix = matrix_with_spectrum([*SPECTRUM[:-1], -4.0], 6)
    with pytest.raises(DivergedSolve, match=r"negative curvature -.*use the Gauss-Newton product"):
        lissa(operator_of(matrix), right_side(), LissaPlan(iterations=100, damping=0.01, scale=20.0))


def test_negative_curvature_within_the_damping_is_solved(matrix_with_spectrum):
    matrix, v = matrix_with_spectrum([*SPECTRUM[:-1], -0.5], 7), right_side()
    plan = LissaPlan(iterations=500, damping=0.1, scale=10.0, tolerance=1e-8)
    assert torch.allclose(lissa(operator_of(matrix), v, plan).solution["x"], damped_inverse(matrix, 1.0, v))


def test_products_that_are_not_finite_raise(matrix_with_spectrum):
    with pytest.raises(DivergedSolve, match="products are not finite"):
        lissa(lambda v: {"x": v["x"] * math.nan}, right_side(), LissaPlan(scale=SEED_SCALE))


def test_a_bad_right_side_is_refused():
    for bad in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="right-hand side has norm"):
            lissa(lambda v: v, {"x": torch.full((3,), bad)}, LissaPlan(scale=SEED_SCALE))


def test_no_curvature_cannot_set_a_scale():
    with pytest.raises(ValueError, match=r"largest eigenvalue along v is 0: .*give scale"):
        lissa(lambda v: {"x": 0 * v["x"]}, right_side())


def test_noisy_products_stop_at_their_floor(matrix_with_spectrum):
    matrix, generator = matrix_with_spectrum([5.0, 4.0, 3.0], 8), torch.Generator().manual_seed(0)

    def noisy(v):
        noise = torch.randn(3, generator=generator, dtype=torch.float64)
        return {"x": matrix @ v["x"] + 1e-5 * torch.linalg.norm(v["x"]) * noise}

    v = right_side(3)
    solve = lissa(noisy, v, LissaPlan(iterations=200, damping=0.2, scale=5.0))
    assert solve.status == "noise_floor" and "own error" in solve.advice
    assert torch.allclose(solve.solution["x"], damped_inverse(matrix, 1.0, v), rtol=1e-2)


def test_a_product_that_fails_late_raises_whatever_the_residual():
    products = []

    def failing(v):
        products.append(1)
        return {"x": v["x"] * (1.0 if len(products) < 12 else math.nan)}

    with pytest.raises(DivergedSolve, match="products are not finite"):
        lissa(failing, right_side(3), LissaPlan(iterations=40, damping=0.1, scale=2.0))


def test_an_exhausted_budget_says_how_many_more(matrix_with_spectrum):
    matrix, v = matrix_with_spectrum(SPECTRUM, 9), right_side()
    plan = LissaPlan(iterations=5, damping=0.05, scale=9.0, tolerance=0.01)
    solve = lissa(operator_of(matrix), v, plan)
    assert solve.status == "budget" and "more iterations" in solve.advice


def test_the_tuned_plan_converges_within_its_depth(matrix_with_spectrum):
    matrix = matrix_with_spectrum([20.0 * 0.7**k for k in range(40)], 10)
    matvec, v = operator_of(matrix), right_side(40)
    lambda_max = lanczos(matvec, v, 8).values[-1]
    trace = hutchinson_trace(matvec, v, 20).trace
    plan = tune(lambda_max, trace, iterations=10, tolerance=0.05)
    solve = lissa(matvec, v, LissaPlan(plan.iterations + 1, plan.damping, plan.scale, plan.tolerance))
    assert solve.status == "converged" and plan.rows == math.ceil(trace / lambda_max)
    assert plan.iterations == 10 and plan.damping == pytest.approx(1 - 0.05**0.1)


def test_tune_names_what_is_wrong():
    with pytest.raises(ValueError, match="lambda_max > 0"):
        tune(-1.0, 10.0, iterations=10)


def test_conjugate_gradients_solve_in_as_many_products_as_distinct_eigenvalues(matrix_with_spectrum):
    matrix, v = matrix_with_spectrum([4.0, 4.0, 4.0, 1.0, 1.0, 0.0], 11), right_side(6)
    solve = conjugate_gradient(operator_of(matrix), v, effective_damping=0.1, tolerance=1e-10)
    assert solve.iterations == solve.products == 3 and solve.status == "converged"
    assert torch.allclose(solve.solution["x"], damped_inverse(matrix, 0.1, v))


def test_conjugate_gradients_refuse_negative_curvature(matrix_with_spectrum):
    with pytest.raises(DivergedSolve, match="Gauss-Newton product or more damping"):
        conjugate_gradient(operator_of(matrix_with_spectrum([1.0, -3.0, 0.5], 12)), right_side(3), 0.1)


def test_conjugate_gradients_report_an_exhausted_budget(matrix_with_spectrum):
    solve = conjugate_gradient(operator_of(matrix_with_spectrum(SPECTRUM, 13)), right_side(), 0.01, iterations=2)
    assert solve.status == "budget" and solve.iterations == 2 and "raise iterations" in solve.advice


def test_both_solvers_agree_on_a_llama(llama):
    operator = gauss_newton(llama.call, llama.weights, FullSpace(), llama.split(2, 3), graph_tokens=1000)
    v = llama.random(1)
    solve = lissa(operator.matvec, v, LissaPlan(iterations=300, damping=0.1, tolerance=1e-3))
    check = conjugate_gradient(operator.matvec, v, solve.effective_damping)
    assert solve.status == check.status == "converged"
    exact = torch.linalg.solve(
        llama.dense_gauss_newton() + solve.effective_damping * torch.eye(len(llama.flat(v))), llama.flat(v)
    )
    for found in (solve, check):
        assert torch.linalg.norm(llama.flat(found.solution) - exact) < 1e-2 * torch.linalg.norm(exact)


def test_a_residual_that_turns_raises_while_it_is_still_small(matrix_with_spectrum):
    matrix = matrix_with_spectrum([10.0, 10.0, 9.0, 8.0, 8.0, -0.4], 14)
    v = {"x": matrix @ right_side(6)["x"]}
    with pytest.raises(DivergedSolve, match="negative curvature") as caught:
        lissa(operator_of(matrix), v, LissaPlan(iterations=60, damping=0.001, scale=10.0))
    residuals = caught.value.residuals
    assert min(residuals) < residuals[-1] < residuals[0] < 1.0
