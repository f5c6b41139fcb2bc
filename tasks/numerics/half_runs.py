"""Runs over random halves of the rows, which a datamodel is fitted to: which rows each step takes, and its rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class HalfRuns:
    """Runs of the same length; a step takes the same number of rows in all of them."""

    rows: Tensor  # [k, t, b] int64 rows of every step, -1 behind those of a short one
    rates: tuple[float, ...]  # learning rate per step, as a share of the peak

    @property
    def runs(self) -> int:
        return len(self.rows)

    def shares(self, tokens: Sequence[float]) -> Tensor:
        """[k, t, b] share of each row's summed gradient in the token-mean gradient of its step; 0 behind its rows."""
        counts = torch.tensor([*tokens, 0.0], dtype=torch.float64)[self.rows]  # -1 reads the zero
        return torch.where(self.rows < 0, 0.0, 1.0 / counts.sum(-1, keepdim=True)).float()

    def inclusion(self, rows: int) -> Tensor:
        """[k, rows] float64, 1 where a row takes part."""
        return self.effects(torch.ones(len(self.rates), dtype=torch.float64), rows).clamp_max_(1.0)

    def effects(self, of_steps: Tensor, rows: int) -> Tensor:
        """[k, rows] float64: of every row the sum over the steps that take it, of `of_steps` [t]."""
        each = of_steps.double()[:, None].expand(self.rows.shape).flatten(1)
        taken = torch.zeros(self.runs, rows + 1, dtype=torch.float64)  # the first for what is no row
        return taken.scatter_add_(1, self.rows.flatten(1) + 1, each)[:, 1:].contiguous()

    def batches(self, runs: slice, rows: Tensor, shares: Tensor) -> Tensor:
        """[c, t, d] gradient of every step of some runs, of the rows' summed ones [n, d] and their shares [k, t, b].

        A step has few of the rows: adding these takes a third of the time of a product with the shares of all.
        """
        taken = self.rows[runs].clamp_min(0).to(rows.device)
        starts = torch.arange(0, taken.numel(), taken.shape[2], device=rows.device)
        weights = shares[runs].to(rows).flatten()
        summed = nn.functional.embedding_bag(taken.flatten(), rows, starts, mode="sum", per_sample_weights=weights)
        return summed.view(-1, len(self.rates), rows.shape[1])

    def squared_norms(self, products: Tensor, shares: Tensor, most: int) -> Tensor:
        """[k, t] float64 squared norm of every step's gradient, from the rows' inner products [n, n] float64; `most`
        numbers in memory at once."""
        taken, weights = self.rows.clamp_min(0).flatten(0, 1), shares.double().flatten(0, 1)
        size = max(1, most // taken.shape[1] ** 2)
        squares = [
            torch.einsum("sa,sab,sb->s", own, products[step[:, :, None], step[:, None, :]], own)
            for step, own in zip(taken.split(size), weights.split(size), strict=True)
        ]
        return torch.cat(squares).view(self.rows.shape[:2])


def half_runs(
    rows: int, rows_per_step: int, epochs: int, runs: int, seed: int, rates: Callable[[int], Sequence[float]]
) -> HalfRuns:
    """`runs` random halves, every epoch in an order of its own; `rates(steps)` gives the schedule.

    Raises ValueError for fewer than four rows: halves of so few do not tell the rows apart.
    """
    if rows < 4:
        raise ValueError(f"{rows} rows: a datamodel needs at least 4")
    generator = torch.Generator().manual_seed(seed)
    each = rows // 2
    size = min(rows_per_step, each)
    steps = math.ceil(each / size)
    taken = torch.full((runs, epochs, steps * size), -1)
    for run in range(runs):
        half = torch.randperm(rows, generator=generator)[:each]
        for epoch in range(epochs):
            taken[run, epoch, :each] = half[torch.randperm(each, generator=generator)]
    return HalfRuns(taken.view(runs, epochs * steps, size), tuple(rates(epochs * steps)))
