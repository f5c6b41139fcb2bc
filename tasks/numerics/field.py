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

from foretune.tasks.numerics.factored import Factored, Gradient, certain, dense, weighted_sum
from foretune.tasks.numerics.products import Multiplicand, Summed, across
from foretune.tasks.numerics.ranks import SUM_RANKS
from foretune.tasks.numerics.row_gradients import RowGradients


@dataclass(frozen=True)
class GradientField:
    """Gradients of the summed loss in the full weights of the adapted modules, one sum per gradient block.

    A block is a macro-batch: the rows of one or several shards. `read(block, name)` returns its [out, in] sum in
    any float dtype, typically from a file; nothing is kept but the mean, so memory is one fp32
    copy of the adapted weights whatever the number of blocks, or factors of SUM_RANKS times a block's rank.
    """

    names: tuple[str, ...]  # adapted weights
    tokens: tuple[int, ...]  # label tokens per block
    rows: tuple[int, ...]  # rows per block
    read: Callable[[int, str], Gradient] = dataclasses.field(repr=False)
    _means: dict[str, Gradient] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    _scatters: dict[str, float] = dataclasses.field(default_factory=dict, repr=False, compare=False)

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

    def group_mean(self, blocks: Sequence[int], name: str, tokens: Sequence[float] | None = None) -> Gradient:
        """Gradient of the token-mean loss over the rows of some blocks, [out, in] fp32; with `tokens` as if each block
        had so many."""
        counts = [self.tokens[block] for block in blocks]
        first, shares = self.read(blocks[0], name), [n / own for n, own in zip(tokens or counts, counts, strict=True)]
        whole = sum(tokens or counts)
        if isinstance(first, Factored):
            parts = (
                cast("Factored", self.read(block, name)).float() * share
                for block, share in zip(blocks, shares, strict=True)
            )
            return weighted_sum(parts, SUM_RANKS * first.rank) * (1 / whole)
        total = first.to(torch.float32, copy=True).mul_(shares[0])
        for block, share in zip(blocks[1:], shares[1:], strict=True):
            total.add_(cast("Tensor", self.read(block, name)), alpha=share)
        return total.div_(whole)

    def scatter(self, name: str) -> float:
        """Variance of a token's gradient, summed over [out, in], by how far the blocks lie from their mean: divided by
        tokens it is that of their mean. 0 of one block."""
        if name not in self._scatters:
            mean, total = certain(self.mean(name)), 0.0
            for block, tokens in enumerate(self.tokens):
                total += float((certain(self.read(block, name)).float() - tokens * mean).square().sum()) / tokens
            self._scatters[name] = total / max(self.blocks - 1, 1)
        return self._scatters[name]

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


KEEP_BYTES, KEEP_BYTES_THERE = 2**29, 2**30
"""Of what is kept for later rounds of a run, of every kind: all of it, or nothing; in memory, and on an accelerator. Of
1,000 rows and r=16 on all linear layers of a 135M model the blocks' factors are 0.9 GB, where a step of the training
takes 3.8; read anew they cost 27 ms of 300 a step."""


@dataclass(frozen=True)
class VirtualBatches:
    """The batch gradients of a run that is not trained, one group of blocks per optimiser step."""

    field: GradientField
    groups: tuple[tuple[int, ...], ...]  # blocks of each step
    batch_rows: int  # rows per optimiser step: batch size times accumulated micro-batches
    row_gradients: RowGradients | None = None  # per-row gradients of a LoRA adapter, where they are stored
    shares: tuple[Mapping[int, float], ...] = ()  # of each step's rows, for `row_gradients`; see orders.row_shares
    mean_shares: tuple[float, ...] = ()  # of the field's mean beside them, where rows stand for others
    _pulled: dict[tuple[tuple[int, ...], str], Tensor] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )
    _kept: dict[tuple[tuple[int, ...], str], Gradient] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def gradient(self, step: int, name: str) -> Multiplicand:
        """Gradient of the token-mean loss at 0-based `step`, [out, in] fp32.

        That of a batch of blocks, variance-matched; with `row_gradients`, the batch's own rows in A0's row space.
        """
        mean = self.field.mean(name)
        return self.about(mean.clone() if isinstance(mean, Tensor) else mean, step, name)

    def about(self, mean: Gradient | Summed, step: int, name: str) -> Multiplicand:
        """`gradient` where the field's mean were `mean`, which the result takes the place of where it is a tensor."""
        blocks = self.groups[step]
        scattered = self._scattered(mean, blocks, name)
        if self.row_gradients is None:
            return scattered
        drawn = self.row_gradients.sum(self.shares[step], name, mean.device)
        if self.mean_shares:
            drawn.add_(self._of_all(name), alpha=self.mean_shares[step])
        return self.row_gradients.moved(scattered, drawn.sub_(self._of_group(blocks, name)), name)

    def _scattered(self, mean: Gradient | Summed, blocks: tuple[int, ...], name: str) -> Tensor | Summed:
        """mean + c (mean of some blocks - mean of all), c their noise factor."""
        factor, of_all = self._factor(blocks), self.field.mean(name)
        if isinstance(of_all, Factored):
            group = cast("Factored", self._group(blocks, name))
            if isinstance(mean, Tensor):  # along shifts that were measured around another adapter
                return mean.add_(group.dense(), alpha=factor).add_(of_all.dense(), alpha=-factor)
            summed = mean if isinstance(mean, Summed) else Summed.of(mean)
            return summed.plus(group, factor).plus(of_all, -factor)
        mean = mean if isinstance(mean, Tensor) else mean.dense()
        tokens = sum(self.field.tokens[block] for block in blocks)
        for block in blocks:
            mean.add_(dense(self._block(block, name)), alpha=factor / tokens)
        return mean.add_(of_all, alpha=-factor)

    def _group(self, blocks: tuple[int, ...], name: str) -> Gradient:
        """The mean of some blocks; in factors kept, up to KEEP_BYTES."""
        found = self._kept.get((blocks, name))
        if found is None:
            found = self.field.group_mean(blocks, name)
            if isinstance(found, Factored) and self._all_fit(found, len(set(self.groups))):
                self._kept[blocks, name] = found
        return found

    def _block(self, block: int, name: str) -> Gradient:
        """A block's sum in its stored dtype; what has been brought to an accelerator stays there, up to
        KEEP_BYTES_THERE."""
        if ((block,), name) in self._kept:
            return self._kept[(block,), name]
        found = self.field.read(block, name)
        if found.device.type != "cpu" and self._all_fit(found, self.field.blocks):
            self._kept[(block,), name] = found
        return found

    def _all_fit(self, gradient: Gradient, of: int) -> bool:
        """Whether so many of one weight's size may be kept, of every weight."""
        most = KEEP_BYTES if gradient.device.type == "cpu" else KEEP_BYTES_THERE
        return gradient.nbytes * of * len(self.field.names) <= most

    def _factor(self, blocks: tuple[int, ...]) -> float:
        return self.field.noise_factor(blocks, self.batch_rows)

    def _of_all(self, name: str) -> Tensor:
        """The field's mean in A0's coordinates, [out, r]."""
        assert self.row_gradients is not None
        if ((), name) not in self._pulled:
            mean = self.field.mean(name)
            self._pulled[(), name] = across(mean, self.row_gradients.start(name, mean))
        return self._pulled[(), name]

    def _of_group(self, blocks: tuple[int, ...], name: str) -> Tensor:
        """The scattered mean of some blocks in A0's coordinates, [out, r]."""
        assert self.row_gradients is not None
        if (blocks, name) in self._pulled:
            return self._pulled[blocks, name]
        group = self._group(blocks, name)
        pulled = torch.lerp(
            self._of_all(name), across(group, self.row_gradients.start(name, group)), self._factor(blocks)
        )
        if self._all_fit(pulled, len(set(self.groups))):
            self._pulled[blocks, name] = pulled
        return pulled


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
