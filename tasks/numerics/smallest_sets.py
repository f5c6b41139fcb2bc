"""The fewest parts that recover a share of a difference when they are really put in place, and what chance does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SmallestSet:
    """The first `size` parts of an order, and the same number drawn at random."""

    size: int  # 0 where nothing was tried
    recovered: float  # share of the difference that they bring
    reached: bool  # whether that is the share asked for
    curve: tuple[float, ...]  # the share that the first 1, 2, ... parts bring
    random: tuple[float, ...]  # of every draw of as many parts


def smallest_set(
    order: Sequence[int],
    parts: int,
    effect: Callable[[Sequence[Sequence[int]]], Sequence[float]],
    difference: float,
    wanted: float,
    draws: int,
    seed: int = 0,
    at_once: int | None = None,
) -> SmallestSet:
    """The fewest of `order`'s beginnings that bring `wanted` of `difference`; of all of them, the one that brings most
    where none does. `effect(sets)` is what putting each set in its place changes; random sets are drawn from all
    `parts`. Each set costs a forward pass; with `at_once` so many are tried, and so many more while none is enough.
    """
    tried = [list(order[: size + 1]) for size in range(len(order))]
    if not tried or not difference:
        return SmallestSet(0, 0.0, False, (), ())
    curve: list[float] = []
    for start in range(0, len(tried), at_once or len(tried)):
        curve += [change / difference for change in effect(tried[start : start + (at_once or len(tried))])]
        if max(curve) >= wanted:
            break
    enough = [at for at, share in enumerate(curve) if share >= wanted]
    best = enough[0] if enough else max(range(len(curve)), key=curve.__getitem__)
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(parts, generator=generator)[: best + 1].tolist() for _ in range(draws)]
    random = [change / difference for change in effect(drawn)] if drawn else []
    return SmallestSet(best + 1, curve[best], bool(enough), tuple(curve), tuple(random))
