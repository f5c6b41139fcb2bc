"""Rows of the `samples` artefact as padded micro-batches of similar length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from foretune.tasks.numerics.batches import Batch


@dataclass(frozen=True)
class Minibatch:
    """A few rows of a table, padded together; `rejected` is set for preference pairs only."""

    rows: tuple[int, ...]  # positions in the table
    batch: Batch
    rejected: Batch | None = None


def minibatches(table: pa.Table, max_tokens: int, device: Any = "cpu", trained_only: bool = True) -> list[Minibatch]:
    """Length-bucketed micro-batches of at most `max_tokens` tokens, padding included.

    `trained_only` leaves out rows without a single label: they have no loss.
    """
    from foretune.tasks.numerics.batches import buckets, collate

    ids, labels = _labelled(table, "input_ids", "loss_mask")
    paired = bool(len(table)) and table["rejected_ids"][0].is_valid
    rejected_ids, rejected_labels = _labelled(table, "rejected_ids", "rejected_mask") if paired else ([], [])
    lengths = [len(i) + (len(rejected_ids[n]) if paired else 0) for n, i in enumerate(ids)]
    kept = [n for n, label in enumerate(labels) if not trained_only or any(value != -100 for value in label[1:])]
    made = []
    for bucket in buckets([lengths[n] for n in kept], max([max_tokens, *(lengths[n] for n in kept)])):
        rows = [kept[position] for position in bucket]
        chosen = collate([(ids[n], labels[n]) for n in rows]).to(device)
        rejected = collate([(rejected_ids[n], rejected_labels[n]) for n in rows]).to(device) if paired else None
        made.append(Minibatch(tuple(rows), chosen, rejected))
    return made


def token_masks(batch: Batch) -> tuple[Tensor, Tensor]:
    """Boolean [b, s] masks: every real token but a row's first, and the label tokens among them."""
    seen = batch.attention_mask.bool().clone()
    seen[:, 0] = False
    return seen, seen & (batch.labels != -100)


def _labelled(table: pa.Table, ids: str, mask: str) -> tuple[list[list[int]], list[list[int]]]:
    token_ids = table[ids].to_pylist()
    labels = [
        [token if keep else -100 for token, keep in zip(row, kept, strict=True)]
        for row, kept in zip(token_ids, table[mask].to_pylist(), strict=True)
    ]
    return token_ids, labels
