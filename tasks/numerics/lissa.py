"""Inverse-curvature solves (H + d I)^-1 v: the LiSSA recursion, and conjugate gradients to check it by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foretune.tasks.numerics.spectrum import Matvec, lanczos
from foretune.tasks.numerics.vectors import Vector, axpy, dot, is_finite, norm, scale, zeros_like

SAFETY = 1.1  # scale over the Krylov estimate of lambda_max; stability needs only scale > lambda_max / 2
SCALE_PRODUCTS = 4
GROWTH = 1.1  # a residual this far above its minimum has turned, and never returns
SEED_SCALE = 25.0  # the fixed setting: with 10 iterations and damping 0.01, the defaults of a plan
NOISE_FLOOR = 1e-3  # below this a rising residual is rounding or finite differencing, not divergence


@dataclass(frozen=True)
class LissaPlan:
    """Settings of one solve. Effective damping is damping * scale, in the units of H's eigenvalues."""

    iterations: int = 10
    damping: float = 0.01
    scale: float | None = None  # None: from the operator, along the right-hand side
    tolerance: float = 0.0  # stop at this relative residual
    rows: int | None = None  # samples below which sampling noise of H dominates its largest eigenvalue


def tune(lambda_max: float, trace: float, iterations: int, tolerance: float = 0.05) -> LissaPlan:
    """Scale from lambda_max, damping from the tolerance, curvature rows from the trace.

    The slowest direction shrinks by 1 - damping an iteration: the damping is the smallest that brings it to the
    tolerance in `iterations`.
    With b rows, E[H_b^2] <= (lambda_max + trace / b) H when E[h^2] <= trace * H: below b = trace / lambda_max
    the noise, not H, sets the stable scale (after Klochkov & Liu 2024, arXiv 2409.17357).
    Raises ValueError unless the numbers are positive.
    """
    if lambda_max <= 0.0 or trace <= 0.0 or not 0.0 < tolerance < 1.0:
        raise ValueError(
            f"tune needs lambda_max > 0, trace > 0 and tolerance in (0, 1), got {lambda_max}, {trace}, {tolerance}"
        )
    damping = 1.0 - tolerance ** (1.0 / iterations)
    return LissaPlan(iterations, damping, SAFETY * lambda_max, tolerance, math.ceil(trace / lambda_max))


@dataclass(frozen=True)
class Solve:
    solution: Vector
    residuals: list[float]  # ||(H + d I) x_k - v|| / ||v|| of the iterate that enters product k
    scale: float
    damping: float
    effective_damping: float  # d = damping * scale
    iterations: int
    products: int  # iterations plus those spent on finding the scale
    status: str  # converged | noise_floor | budget
    advice: str  # what to change; empty when converged


class DivergedSolve(ValueError):
    """The residual grew or left the finite numbers: the iterate means nothing."""

    def __init__(self, residuals: list[float], advice: str) -> None:
        reached = f"residual {residuals[-1]:.3g} after {len(residuals)} products"
        super().__init__(f"solve diverged, {reached}: {advice}")
        self.residuals, self.advice = residuals, advice


def lissa(matvec: Matvec, v: Vector, plan: LissaPlan = LissaPlan()) -> Solve:
    """(H + damping * scale * I)^-1 v by u <- v + (1 - damping) u - H u / scale from u = v, as u / scale.

    The recursion of Koh & Liang 2017 over a fixed operator. Its update is minus the residual vector, so the
    residual of every iterate costs no product; the returned one is a step further than the last listed, or
    exactly that one when the solve stopped early. Stable if all eigenvalues lie in (-damping * scale, (2 -
    damping) * scale). Residuals of a fixed symmetric operator are log-convex in k: once they grow, they grow
    for ever.

    Raises DivergedSolve when the residual exceeds its start or grows; ValueError for a v that is zero or not
    finite.
    """
    length = _checked_norm(v)
    size, spent = (plan.scale, 0) if plan.scale is not None else _scale_along(matvec, v)
    u, last, residuals = v, zeros_like(v), []
    status, advice = "budget", ""
    for _ in range(plan.iterations):
        product = matvec(u)
        residual = axpy(plan.damping, u, axpy(-1.0, v, scale(1.0 / size, product)))
        residuals.append(norm(residual) / length if is_finite(residual) else math.inf)
        if residuals[-1] <= plan.tolerance:
            status = "converged"
            break
        if GROWTH * min(residuals) < residuals[-1] < math.inf and min(residuals) < NOISE_FLOOR:
            u, status = last, "noise_floor"
            advice = "the products' own error is reached: nothing is gained by more iterations"
            break
        if residuals[-1] > min(1.0, GROWTH * min(residuals)):
            raise DivergedSolve(residuals, _divergence_advice(residual, axpy(-1.0, u, last), plan, size))
        last, u = u, axpy(-1.0, residual, u)
    if status == "budget" and residuals[-1] > plan.tolerance > 0.0:
        advice = _depth_advice(residuals, plan)
    return Solve(
        solution=scale(1.0 / size, u),
        residuals=residuals,
        scale=size,
        damping=plan.damping,
        effective_damping=plan.damping * size,
        iterations=len(residuals),
        products=len(residuals) + spent,
        status=status,
        advice=advice,
    )


def conjugate_gradient(
    matvec: Matvec, v: Vector, effective_damping: float, iterations: int = 50, tolerance: float = 1e-4
) -> Solve:
    """(H + d I)^-1 v by conjugate gradients (Hestenes & Stiefel 1952); reported with scale 1, so damping = d.

    Raises DivergedSolve on negative curvature or non-finite numbers; ValueError for a bad right-hand side.
    """
    length = _checked_norm(v)
    x, r, p = zeros_like(v), v, v
    square, residuals = length**2, [1.0]
    while residuals[-1] > tolerance and len(residuals) <= iterations:
        product = axpy(effective_damping, p, matvec(p))
        curvature = dot(p, product)
        if not curvature > 0.0:
            advice = f"curvature {curvature:.3g} along a direction: use the Gauss-Newton product or more damping"
            raise DivergedSolve([*residuals, math.inf], advice)
        step = square / curvature
        x, r = axpy(step, p, x), axpy(-step, product, r)
        square, before = dot(r, r), square
        residuals.append(math.sqrt(square) / length)
        p = axpy(square / before, p, r)
    done = residuals[-1] <= tolerance
    return Solve(
        solution=x,
        residuals=residuals,
        scale=1.0,
        damping=effective_damping,
        effective_damping=effective_damping,
        iterations=len(residuals) - 1,
        products=len(residuals) - 1,
        status="converged" if done else "budget",
        advice="" if done else f"residual {residuals[-1]:.2g} > {tolerance:.2g}: raise iterations or the damping",
    )


def _scale_along(matvec: Matvec, v: Vector) -> tuple[float, int]:
    # The recursion never leaves the Krylov space of v, so its stability depends on the spectrum seen from v.
    ritz = lanczos(matvec, v, SCALE_PRODUCTS)
    largest = ritz.values[-1] + ritz.residuals[-1]
    if not (math.isfinite(largest) and largest > 0.0):
        raise ValueError(f"largest eigenvalue along v is {largest:.3g}: no positive curvature to scale by, give scale")
    return SAFETY * largest, ritz.products


def _checked_norm(v: Vector) -> float:
    length = norm(v)
    if not (math.isfinite(length) and length > 0.0):
        raise ValueError(f"right-hand side has norm {length}: it must be finite and not zero")
    return length


def _divergence_advice(residual: Vector, before: Vector, plan: LissaPlan, size: float) -> str:
    """What made the residual grow, from r_k = ((1 - damping) I - H / scale) r_{k-1}: no product is needed."""
    growth = dot(before, residual) / dot(before, before)
    if not math.isfinite(growth):
        return f"products are not finite at scale {size:.4g}: check the weights, or raise the scale"
    curvature = size * (1.0 - plan.damping - growth)
    if curvature < 0.0:
        return (
            f"negative curvature {curvature:.3g} against an effective damping of {plan.damping * size:.3g}: "
            "use the Gauss-Newton product or more damping"
        )
    return f"scale {size:.4g} is too small for curvature {curvature:.4g}: raise it above, or leave it automatic"


def _depth_advice(residuals: list[float], plan: LissaPlan) -> str:
    rate = residuals[-1] / residuals[-2] if len(residuals) > 1 else 1.0 - plan.damping
    text = f"residual {residuals[-1]:.2g} after {len(residuals)} iterations, tolerance {plan.tolerance:.2g}"
    if not 0.0 < rate < 1.0:
        return f"{text}: raise the damping"
    more = math.ceil(math.log(plan.tolerance / residuals[-1]) / math.log(rate))
    return f"{text}: at least {more} more iterations, or more damping than {plan.damping:.3g}"
