"""The measured gradient field: full-weight gradients by node, and the virtual batches drawn from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foretune.tasks.numerics.row_gradients import RowGradients


@dataclass(frozen=True)
class GradientField:
    """Gradients of the summed loss in the full weights of the adapted modules, one sum per node.

    A node is a macro-batch: the rows of one leaf (or several) of the shard tree. `read(node, name)` returns
    its [out, in] sum in any float dtype, typically a slice of a memory-mapped file; nothing is kept but the
    mean, so memory is one fp32 copy of the adapted weights whatever the number of nodes.
    """

    names: tuple[str, ...]  # adapted weights
    tokens: tuple[int, ...]  # label tokens per node
    rows: tuple[int, ...]  # rows per node
    read: Callable[[int, str], Tensor] = field(repr=False)
    _means: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.rows):
            raise ValueError(f"{len(self.tokens)} token counts, {len(self.rows)} row counts: one each per node")
        if not self.tokens or min(self.tokens) <= 0:
            raise ValueError("every node needs a label token: leave out nodes that train on nothing")

    @property
    def nodes(self) -> int:
        return len(self.tokens)

    def mean(self, name: str) -> Tensor:
        """Gradient of the token-mean loss over all nodes, [out, in] fp32: sums added, divided once."""
        if name not in self._means:
            self._means[name] = self.group_mean(range(self.nodes), name)
        return self._means[name]

    def group_mean(self, nodes: Sequence[int], name: str) -> Tensor:
        """Gradient of the token-mean loss over the rows of some nodes, [out, in] fp32."""
        total = self.read(nodes[0], name).to(torch.float32, copy=True)
        for node in nodes[1:]:
            total += self.read(node, name)
        return total.div_(sum(self.tokens[node] for node in nodes))

    def noise_factor(self, nodes: Sequence[int], batch_rows: int) -> float:
        """Factor c that gives mean + c * (group_mean - mean) the variance of a real batch of `batch_rows`.

        The mean of m rows drawn from N without replacement scatters about the mean of all N with covariance
        (1/m - 1/N) * S, S the covariance of single rows. Equal covariance for the group's n rows and the
        batch's b asks for c^2 = (1/b - 1/N) / (1/n - 1/N); for N much larger than both, c = sqrt(n/b). A
        group of all rows has no scatter to scale: c = 0.
        """
        total, group = sum(self.rows), sum(self.rows[node] for node in nodes)
        if group >= total or batch_rows >= total:
            return 0.0
        return math.sqrt((1 / batch_rows - 1 / total) / (1 / group - 1 / total))


@dataclass(frozen=True)
class VirtualBatches:
    """The batch gradients that a run would have met, one group of nodes per optimiser step."""

    field: GradientField
    groups: tuple[tuple[int, ...], ...]  # nodes of each step
    batch_rows: int  # rows per optimiser step: batch size times accumulated micro-batches
    detail: RowGradients | None = None  # what each row does to a LoRA adapter, where it was stored
    shares: tuple[Mapping[int, float], ...] = ()  # of each step's rows, for `detail`; see orders.row_shares
    keep_bytes: int = 2**31  # for gradients kept for later rounds and replays, an equal share per weight
    _kept: dict[tuple[tuple[int, ...], str], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def gradient(self, step: int, name: str) -> Tensor:
        """Gradient of the token-mean loss at 0-based `step`, [out, in] fp32, read-only.

        That of a batch of nodes, variance-matched; with `detail`, the batch's own rows in the adapter's row space.
        """
        gradient = self._of_nodes(self.groups[step], name)
        return gradient if self.detail is None else self.detail.imposed(gradient, self.shares[step], name)

    def _of_nodes(self, nodes: tuple[int, ...], name: str) -> Tensor:
        if (nodes, name) in self._kept:
            return self._kept[nodes, name]
        factor = self.field.noise_factor(nodes, self.batch_rows)
        gradient = self.field.group_mean(nodes, name).lerp_(self.field.mean(name), 1 - factor)
        if gradient.nbytes * len(set(self.groups)) * len(self.field.names) <= self.keep_bytes:
            self._kept[nodes, name] = gradient
        return gradient


def virtual_batches(field: GradientField, batch_rows: int, steps: int, seed: int) -> VirtualBatches:
    """Visits all nodes in a new seeded order per round, averaging as many nodes as make up one real batch.

    Nodes smaller than a batch are grouped (accumulation is the same thing: the average of its micro-batches);
    nodes larger than a batch are taken one at a time and their scatter is raised by `noise_factor`.
    Raises ValueError when batch_rows is not positive.
    """
    if batch_rows <= 0:
        raise ValueError(f"batch_rows must be positive, got {batch_rows}")
    size = min(field.nodes, max(1, round(batch_rows * field.nodes / sum(field.rows))))
    generator = torch.Generator().manual_seed(seed)
    groups: list[tuple[int, ...]] = []
    while len(groups) < steps:
        order = torch.randperm(field.nodes, generator=generator).tolist()
        groups += [tuple(order[start : start + size]) for start in range(0, field.nodes, size)]
    return VirtualBatches(field, tuple(groups[:steps]), batch_rows)
