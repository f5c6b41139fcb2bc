"""The measured gradient field: full-weight gradients by block, and the virtual batches drawn from it.

Every gradient is a tensor [out, in] or, where the field is stored in factors, those.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from foretune.tasks.numerics.factored import Factored, Gradient, across, lerp, weighted_sum
from foretune.tasks.numerics.ranks import SUM_RANKS
from foretune.tasks.numerics.row_gradients import RowGradients


@dataclass(frozen=True)
class GradientField:
    """Gradients of the summed loss in the full weights of the adapted modules, one sum per gradient block.

    A block is a macro-batch: the rows of one or several shards. `read(block, name)` returns its [out, in] sum in
    any float dtype, typically a slice of a memory-mapped file; nothing is kept but the mean, so memory is one fp32
    copy of the adapted weights whatever the number of blocks, or factors of SUM_RANKS times a block's rank.
    """

    names: tuple[str, ...]  # adapted weights
    tokens: tuple[int, ...]  # label tokens per block
    rows: tuple[int, ...]  # rows per block
    read: Callable[[int, str], Gradient] = dataclasses.field(repr=False)
    _means: dict[str, Gradient] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.rows):
            raise ValueError(f"{len(self.tokens)} token counts, {len(self.rows)} row counts: one each per block")
        if not self.tokens or min(self.tokens) <= 0:
            raise ValueError("every block needs a label token: leave out blocks that train on nothing")

    @property
    def blocks(self) -> int:
        return len(self.tokens)

    def mean(self, name: str) -> Gradient:
        """Gradient of the token-mean loss over all blocks, [out, in] fp32: sums added, divided once."""
        if name not in self._means:
            self._means[name] = self.group_mean(range(self.blocks), name)
        return self._means[name]

    def group_mean(self, blocks: Sequence[int], name: str) -> Gradient:
        """Gradient of the token-mean loss over the rows of some blocks, [out, in] fp32."""
        first, tokens = self.read(blocks[0], name), sum(self.tokens[block] for block in blocks)
        if isinstance(first, Factored):
            parts = (cast("Factored", self.read(block, name)).float() for block in blocks)
            return weighted_sum(parts, SUM_RANKS * first.rank) * (1 / tokens)
        total = first.to(torch.float32, copy=True)
        for block in blocks[1:]:
            total += cast("Tensor", self.read(block, name))
        return total.div_(tokens)

    def noise_factor(self, blocks: Sequence[int], batch_rows: int) -> float:
        """Factor c that gives mean + c * (group_mean - mean) the variance of a real batch of `batch_rows`.

        The mean of m rows drawn from N without replacement scatters about the mean of all N with covariance
        (1/m - 1/N) * S, S the covariance of single rows. Equal covariance for the group's n rows and the
        batch's b asks for c^2 = (1/b - 1/N) / (1/n - 1/N); for N much larger than both, c = sqrt(n/b). A
        group of all rows has no scatter: c = 0.
        """
        total, group = sum(self.rows), sum(self.rows[block] for block in blocks)
        if group >= total or batch_rows >= total:
            return 0.0
        return math.sqrt((1 / batch_rows - 1 / total) / (1 / group - 1 / total))


@dataclass(frozen=True)
class VirtualBatches:
    """The batch gradients of a run that is not trained, one group of blocks per optimiser step."""

    field: GradientField
    groups: tuple[tuple[int, ...], ...]  # blocks of each step
    batch_rows: int  # rows per optimiser step: batch size times accumulated micro-batches
    row_gradients: RowGradients | None = None  # per-row gradients of a LoRA adapter, where they are stored
    shares: tuple[Mapping[int, float], ...] = ()  # of each step's rows, for `row_gradients`; see orders.row_shares
    mean_shares: tuple[float, ...] = ()  # of the field's mean beside them, where rows stand for others
    keep_bytes: int = 2**31  # for gradients kept for later rounds and replays, an equal share per weight
    _pulled: dict[str, Tensor] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    _kept: dict[tuple[tuple[int, ...], str], Gradient] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def gradient(self, step: int, name: str) -> Gradient:
        """Gradient of the token-mean loss at 0-based `step`, [out, in] fp32, read-only.

        That of a batch of blocks, variance-matched; with `row_gradients`, the batch's own rows in A0's row space.
        """
        gradient = self._of_blocks(self.groups[step], name)
        if self.row_gradients is None:
            return gradient
        replaced = self.row_gradients.with_row_space_replaced
        if not self.mean_shares:
            return replaced(gradient, self.shares[step], name)
        return replaced(gradient, self.shares[step], name, self._mean_rows(name).mul(self.mean_shares[step]))

    def _mean_rows(self, name: str) -> Tensor:
        """The field's mean in A0's coordinates, [out, r]."""
        assert self.row_gradients is not None
        if name not in self._pulled:
            mean = self.field.mean(name)
            self._pulled[name] = across(mean, self.row_gradients.factors[name].to(mean.device, mean.dtype))
        return self._pulled[name]

    def _of_blocks(self, blocks: tuple[int, ...], name: str) -> Gradient:
        if (blocks, name) in self._kept:
            return self._kept[blocks, name]
        factor = self.field.noise_factor(blocks, self.batch_rows)
        gradient = lerp(self.field.group_mean(blocks, name), self.field.mean(name), 1 - factor)
        if gradient.nbytes * len(set(self.groups)) * len(self.field.names) <= self.keep_bytes:
            self._kept[blocks, name] = gradient
        return gradient


def virtual_batches(field: GradientField, batch_rows: int, steps: int, seed: int) -> VirtualBatches:
    """Visits all blocks in a new seeded order per round, averaging as many blocks as make up one real batch.

    Blocks smaller than a batch are grouped (accumulation is the same thing: the average of its micro-batches);
    blocks larger than a batch are taken one at a time and their scatter is raised by `noise_factor`.
    Raises ValueError when batch_rows is not positive.
    """
    if batch_rows <= 0:
        raise ValueError(f"batch_rows must be positive, got {batch_rows}")
    size = min(field.blocks, max(1, round(batch_rows * field.blocks / sum(field.rows))))
    generator = torch.Generator().manual_seed(seed)
    groups: list[tuple[int, ...]] = []
    while len(groups) < steps:
        order = torch.randperm(field.blocks, generator=generator).tolist()
        groups += [tuple(order[start : start + size]) for start in range(0, field.blocks, size)]
    return VirtualBatches(field, tuple(groups[:steps]), batch_rows)
