"""The largest singular values of a weight's change and their directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXACT = 256
"""Up to this many rows or columns the whole decomposition is taken."""


@dataclass(frozen=True)
class SingularPart:
    """The largest k singular values of a matrix [out, in], in float32."""

    values: Tensor  # [k], largest first
    outputs: Tensor  # [out, k], unit vectors u
    inputs: Tensor  # [in, k], unit vectors v
    frobenius: float

    @property
    def stable_rank(self) -> float:
        """||D||_F^2 / ||D||_2^2: 1 for one direction, at most the rank; 0 for no change."""
        largest = float(self.values[0]) if len(self.values) else 0.0
        return (self.frobenius / largest) ** 2 if largest else 0.0


def largest_singular(matrix: Tensor, k: int = 4, extra: int = 12, passes: int = 4, seed: int = 0) -> SingularPart:
    """Of [out, in] by randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1).

    Exact, but for rounding, where the rank is at most k + extra, as LoRA's usually is; else `passes` power iterations
    bring a value that stands out by a factor g within about g^-(2 passes) of its own. `seed` draws the start.
    """
    matrix = matrix.float()
    size, wanted = float(matrix.norm()), min(k, *matrix.shape)
    # Scaled, so that no square of a small change falls out of float32.
    scaled = matrix / size if size else matrix
    if min(matrix.shape) <= EXACT:
        u, s, vh = torch.linalg.svd(scaled, full_matrices=False)
    else:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(matrix.shape[1], min(k + extra, *matrix.shape), generator=generator)
        basis = torch.linalg.qr(scaled @ start.to(matrix.device)).Q
        for _ in range(passes):
            basis = torch.linalg.qr(scaled @ torch.linalg.qr(scaled.T @ basis).Q).Q
        inner, s, vh = torch.linalg.svd(basis.T @ scaled, full_matrices=False)
        u = basis @ inner
    return SingularPart(s[:wanted] * size, u[:, :wanted], vh[:wanted].T, size)
