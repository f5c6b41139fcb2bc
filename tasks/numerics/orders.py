"""The order in which transformers' Trainer meets the rows."""

from __future__ import annotations

from collections.abc import Sequence

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
    shares: dict[int, float] = {}
    for batch, total in zip(step, sums, strict=True):
        for row in batch:  # one that stands for others may come twice
            shares[row] = shares.get(row, 0.0) + 1 / total
    return shares


def stand_ins(rows: int, measured: int, seed: int) -> list[int]:
    """For each of `rows` the measured row that stands for it, itself for the first `measured`: every measured row for
    as many others, but for one. Raises ValueError where there is none, or there are more than rows.
    """
    if not 1 <= measured <= rows:
        raise ValueError(f"{measured} measured rows of {rows}: give between 1 and all")
    generator, found = torch.Generator().manual_seed(seed), list(range(measured))
    while len(found) < rows:
        found += torch.randperm(measured, generator=generator).tolist()
    return found[:rows]
