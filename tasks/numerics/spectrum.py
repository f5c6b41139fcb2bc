"""Eigenvalues and trace of a symmetric operator that is known only through products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from foretune.tasks.numerics.vectors import Vector, axpy, dot, norm, random_like, scale

Matvec = Callable[[Vector], Vector]


@dataclass(frozen=True)
class Spectrum:
    eigenvalue: float  # Rayleigh quotient of the last iterate; of largest modulus in the limit
    residual: float  # ||H q - eigenvalue q|| for the unit iterate q: some eigenvalue lies this close
    iterations: int
    history: list[float]  # Rayleigh quotient per iteration


def power_iteration(matvec: Matvec, like: Vector, iterations: int = 3, seed: int = 0) -> Spectrum:
    """The eigenvalue of largest modulus, from below in modulus, with its sign; one product per iteration.

    `like` gives names, shapes and dtypes; the start is a seeded normal vector. Three iterations are the seed
    design's sharpness; `lanczos` is closer for the same number of products.
    """
    iterate = _unit(random_like(like, torch.Generator().manual_seed(seed)))
    history, residual = [], math.inf
    for _ in range(iterations):
        product = matvec(iterate)
        history.append(dot(iterate, product))
        residual = norm(axpy(-history[-1], iterate, product))
        if norm(product) == 0.0:
            break
        iterate = _unit(product)
        del product  # not held while the next one is taken: of all weights it is as large as the model
    return Spectrum(history[-1], residual, len(history), history)


@dataclass(frozen=True)
class Ritz:
    values: list[float]  # ascending Ritz values of the Krylov space
    residuals: list[float]  # ||H y - value y|| per unit Ritz vector: some eigenvalue lies this close
    products: int


def lanczos(matvec: Matvec, start: Vector, k: int) -> Ritz:
    """Ritz values from k products, with full reorthogonalisation; keeps k vectors.

    Stops early when the Krylov space is exhausted; the values are then eigenvalues.
    Raises ValueError for a zero or non-finite start.
    """
    length = norm(start)
    if not (math.isfinite(length) and length > 0.0 and k >= 1):
        raise ValueError(f"lanczos needs a finite start and k >= 1, got norm {length} and k={k}")
    basis, diagonal, offdiagonal = [scale(1.0 / length, start)], [], []
    for _ in range(k):
        product = matvec(basis[-1])
        diagonal.append(dot(basis[-1], product))
        size = norm(product)
        offdiagonal.append(norm(product := _orthogonal(product, basis)))
        # Below this the remainder is rounding of a float32 product, not a new direction.
        if offdiagonal[-1] <= 1e-5 * size or len(diagonal) == k:
            break
        basis.append(scale(1.0 / offdiagonal[-1], product))
    return _ritz(diagonal, offdiagonal)


def _ritz(diagonal: list[float], offdiagonal: list[float]) -> Ritz:
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for i, beta in enumerate(offdiagonal[:-1]):
        tridiagonal[i, i + 1] = tridiagonal[i + 1, i] = beta
    values, vectors = torch.linalg.eigh(tridiagonal)
    return Ritz(
        values=values.tolist(),
        residuals=(offdiagonal[-1] * vectors[-1].abs()).tolist(),
        products=len(diagonal),
    )


@dataclass(frozen=True)
class Trace:
    trace: float
    standard_error: float  # inf for a single probe
    probes: int


def hutchinson_trace(matvec: Matvec, like: Vector, probes: int, seed: int = 0) -> Trace:
    """Mean of z^T H z over Rademacher probes z (Hutchinson 1989), one product each."""
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(probes):
        probe = random_like(like, generator, law="signs")
        draws.append(dot(probe, matvec(probe)))
    mean = sum(draws) / probes
    spread = sum((d - mean) ** 2 for d in draws)
    error = math.sqrt(spread / (probes - 1) / probes) if probes > 1 else math.inf
    return Trace(mean, error, probes)


def _unit(x: Vector) -> Vector:
    return scale(1.0 / norm(x), x)


def _orthogonal(x: Vector, basis: list[Vector]) -> Vector:
    # Twice is enough: one pass leaves a component of the size of the rounding it just made.
    for _ in range(2):
        for q in basis:
            x = axpy(-dot(q, x), q, x)
    return x
