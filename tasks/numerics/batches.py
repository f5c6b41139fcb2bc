"""Micro-batches of token rows, bucketed by length so that little is spent on padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foretune.tasks.numerics.buckets import buckets as buckets

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Right-padded rows; `labels` line up with `input_ids` (not shifted), -100 where nothing is learnt."""

    input_ids: Tensor  # [b, s] long
    attention_mask: Tensor  # [b, s] long
    labels: Tensor  # [b, s] long

    @property
    def rows(self) -> int:
        return self.input_ids.shape[0]

    @property
    def padded_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def label_tokens(self) -> int:
        """Tokens with a loss. The first position has none: nothing precedes it."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def part(self, rows: slice) -> Batch:
        """Some of its rows, padded as they were."""
        return Batch(self.input_ids[rows], self.attention_mask[rows], self.labels[rows])

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


def collate(samples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Batch:
    """One batch from (input_ids, labels) pairs of equal length each, padded on the right with id 0.

    Raises ValueError for an empty list, an empty row, or labels of another length than their ids.
    """
    if not samples:
        raise ValueError("a batch needs at least one row, got 0")
    for position, (ids, labels) in enumerate(samples):
        if len(ids) != len(labels) or not len(ids):
            raise ValueError(f"row {position} has {len(ids)} ids, {len(labels)} labels: give one label per id")
    shape = (len(samples), max(len(ids) for ids, _ in samples))
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    padded_labels = torch.full(shape, IGNORED, dtype=torch.long)
    for row, (ids, labels) in enumerate(samples):
        input_ids[row, : len(ids)] = torch.as_tensor(ids, dtype=torch.long)
        attention_mask[row, : len(ids)] = 1
        padded_labels[row, : len(ids)] = torch.as_tensor(labels, dtype=torch.long)
    return Batch(input_ids, attention_mask, padded_labels)
