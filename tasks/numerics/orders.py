"""The order in which transformers' Trainer meets the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

MicroBatches = tuple[tuple[int, ...], ...]  # rows (0-based) of one optimizer step, by micro-batch


def trainer_steps(rows: int, batch_size: int, accumulation: int, steps: int, seed: int) -> list[MicroBatches]:
    """Rows of every optimizer step, as the Trainer's sampler draws them under `data_seed=seed`.

    Every epoch is one permutation drawn from seed + epoch; its last micro-batch and its last step may be short.
    Source: accelerate.data_loader.SeedableRandomSampler and the epoch loop of transformers.Trainer.
    Raises ValueError without rows.
    """
    if rows < 1:
        raise ValueError("no rows to order")
    epoch = 0
    taken: list[MicroBatches] = []
    while len(taken) < steps:
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        batches = [tuple(order[start : start + batch_size]) for start in range(0, rows, batch_size)]
        taken += [tuple(batches[start : start + accumulation]) for start in range(0, len(batches), accumulation)]
        epoch += 1
    return taken[:steps]


def row_shares(step: MicroBatches, items: Sequence[float], by_micro_batch: bool = False) -> dict[int, float]:
    """{row: factor of its summed gradient in the step's gradient}; `items` are the label tokens or pairs of every row.

    The Trainer divides the losses of all micro-batches by the items of the whole step (`num_items_in_batch`). Trl's
    DPOTrainer averages the micro-batches' own means, so that a pair in a short last one weighs more.
    """
    if by_micro_batch:
        sums = [sum(items[row] for row in batch) * len(step) for batch in step]
    else:
        sums = [sum(items[row] for batch in step for row in batch)] * len(step)
    return {row: 1 / total for batch, total in zip(step, sums, strict=True) for row in batch}


@dataclass(frozen=True)
class StandIn:
    """A measured row that stands for one that is not: with `against` its deviation from the mean is taken as
    (own - other's) / sqrt(2), which scatters as much as one row's."""

    row: int
    against: int | None = None


def stand_ins(rows: int, measured: int, seed: int) -> list[StandIn]:
    """For each of `rows` what stands for it: the first `measured` for themselves, for the others pairs of them.

    The others walk through the measured rows in seeded circles, each against the next: round a circle the deviations
    add up to nothing, as those of all rows do, so that no row's own direction is followed more often than it would
    be. Raises ValueError where there is no measured row, or there are more than rows.
    """
    if not 1 <= measured <= rows:
        raise ValueError(f"{measured} measured rows of {rows}: give between 1 and all")
    generator, found = torch.Generator().manual_seed(seed), [StandIn(row) for row in range(measured)]
    while len(found) < rows:
        circle = torch.randperm(measured, generator=generator).tolist()[: rows - len(found)]
        found += [StandIn(row, circle[(place + 1) % len(circle)]) for place, row in enumerate(circle)]
    return found


@dataclass(frozen=True)
class Shares:
    """What the gradient of one step is made of: factors of rows' summed gradients, and of the mean per label token."""

    rows: dict[int, float]
    mean: float = 0.0


def stand_in_shares(
    step: MicroBatches, played: Sequence[StandIn], items: Sequence[float], by_micro_batch: bool = False
) -> Shares:
    """`row_shares` where rows are played by others; `items` are those of the measured rows."""
    rows = [row for batch in step for row in batch]
    factors = row_shares(step, [items[each.row] for each in played], by_micro_batch)
    shares: dict[int, float] = {}
    mean = 0.0
    for number in rows:
        one, factor = played[number], factors[number]
        if one.against is None:
            shares[one.row] = shares.get(one.row, 0.0) + factor
            continue
        part = factor / math.sqrt(2)
        shares[one.row] = shares.get(one.row, 0.0) + part
        shares[one.against] = shares.get(one.against, 0.0) - part
        mean += factor * items[one.row] - part * (items[one.row] - items[one.against])
    return Shares(shares, mean)
