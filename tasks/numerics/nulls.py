"""Random deltas of a given size, and how far a figure stands out from those that they give."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def null_delta(
    weights: Mapping[str, Tensor], norms: Mapping[str, float], rank: int | None, draw: int, seed: int = 0
) -> dict[str, Tensor]:
    """{name: delta} in float32: each weight's of the norm given, in a random direction, by the `draw` of a `seed`.

    A matrix's is a product of Gaussian factors [out, rank] and [rank, in], as a LoRA adapter's is; without a rank,
    as for all that is no matrix, its entries are Gaussian. Factors are drawn on the CPU, so that they are the same on
    any device; whole Gaussian weights where the weight is.
    """
    delta = {}
    for name, norm in norms.items():
        weight = weights[name]
        if rank is None or weight.ndim != 2:
            drawn = torch.randn(
                weight.shape, generator=_generator(seed, draw, name, weight.device), device=weight.device
            )
        else:
            generator, r = _generator(seed, draw, name, "cpu"), min(rank, *weight.shape)
            b, a = (torch.randn(*shape, generator=generator) for shape in ((weight.shape[0], r), (r, weight.shape[1])))
            drawn = b.to(weight.device) @ a.to(weight.device)
        delta[name] = drawn * (norm / float(drawn.norm()))
    return delta


def _generator(seed: int, draw: int, name: str, device: torch.device | str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {draw} {name}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class AgainstNulls:
    """A figure beside those of random deltas."""

    mean: float
    sd: float
    sds: float | None  # (figure - mean) / sd: how many null standard deviations
    z: float | None  # the same as a standard normal's, the few draws taken into account; None where nothing varies


def against_nulls(figure: float, nulls: Sequence[float]) -> AgainstNulls | None:
    """How `figure` stands out from those of n null deltas; None below two.

    A fresh null's t = (x - mean) / (sd sqrt(1 + 1/n)) is Student's with n - 1 degrees of freedom, whose tails
    are much heavier than the normal's for a few draws. z is the standard normal's value of the same tail, by
    Wallace's formula (1959), z = (8v + 1) / (8v + 3) sqrt(v ln(1 + t^2 / v)), v = n - 1.
    """
    n = len(nulls)
    if n < 2:
        return None
    mean = math.fsum(nulls) / n
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in nulls) / (n - 1))
    if not sd:
        return AgainstNulls(mean, sd, None, None)
    sds, v = (figure - mean) / sd, n - 1
    t = sds / math.sqrt(1 + 1 / n)
    z = (8 * v + 1) / (8 * v + 3) * math.sqrt(v * math.log1p(t * t / v))
    return AgainstNulls(mean, sd, sds, math.copysign(z, t))
