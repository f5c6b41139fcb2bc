"""Points and weights of an integral from 0 to 1."""

from __future__ import annotations

import torch


def gauss_legendre(points: int) -> list[tuple[float, float]]:
    """(place, weight) of the rule that is exact for polynomials up to degree 2 points - 1, by the eigenvalues of its
    Jacobi matrix (Golub and Welsch 1969). One point is the beginning, 0: a derivative there, and no integral."""
    if points == 1:
        return [(0.0, 1.0)]
    order = torch.arange(1, points, dtype=torch.float64)
    off = order / (4 * order**2 - 1).sqrt()
    places, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return list(zip(((places + 1) / 2).tolist(), (vectors[0] ** 2).tolist(), strict=True))
