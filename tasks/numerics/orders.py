"""The order in which transformers' Trainer meets the rows."""

from __future__ import annotations

import torch


def trainer_steps(rows: int, batch_size: int, accumulation: int, steps: int, seed: int) -> list[tuple[int, ...]]:
    """Rows (0-based) of every optimizer step, as the Trainer's sampler draws them under `data_seed=seed`.

    Every epoch is one permutation drawn from seed + epoch; its last micro-batch and its last step may be short.
    Source: accelerate.data_loader.SeedableRandomSampler and the epoch loop of transformers.Trainer.
    Raises ValueError without rows.
    """
    if rows < 1:
        raise ValueError("no rows to order")
    size, epoch = batch_size * accumulation, 0
    taken: list[tuple[int, ...]] = []
    while len(taken) < steps:
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        taken += [tuple(order[start : start + size]) for start in range(0, rows, size)]
        epoch += 1
    return taken[:steps]
