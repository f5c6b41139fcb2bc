"""Log-likelihoods of options: what several options of an item share is read once, where the model's cache allows it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from foretune.tasks.behaviour.contexts import Continuation
from foretune.tasks.loading import label_caller

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel

MIN_SHARED = 8
"""Tokens: a shorter prefix costs as much in a forward of its own as it saves."""


def log_likelihoods(
    loaded: LoadedModel, groups: Sequence[Sequence[Continuation]], batch_tokens: int
) -> list[list[float]]:
    """Nats of every continuation, summed over its tokens; a group is the options of one item."""
    found: list[list[float]] = [[0.0] * len(group) for group in groups]
    shared = [shared_prefix(group) for group in groups]
    caches = keeps_a_cache(loaded)
    apart = [n for n, group in enumerate(groups) if not (caches and len(group) > 1 and shared[n] >= MIN_SHARED)]
    lone = [(n, option) for n in apart for option in range(len(groups[n]))]
    for (n, option), nats in zip(lone, _whole(loaded, [groups[n][o] for n, o in lone], batch_tokens), strict=True):
        found[n][option] = nats
    joint = sorted(set(range(len(groups))) - set(apart), key=lambda n: -_width(groups[n]))
    for part in _parts(joint, groups, batch_tokens):
        for n, nats in zip(part, _sharing(loaded, [groups[n] for n in part], [shared[n] for n in part]), strict=True):
            found[n] = nats
    return found


def shared_prefix(group: Sequence[Continuation]) -> int:
    """Tokens that all continuations begin with, the last one before an option left out: it predicts the option."""
    most = min(each.start for each in group) - 1
    first = group[0].ids
    for position in range(most):
        if any(each.ids[position] != first[position] for each in group):
            return position
    return max(most, 0)


def keeps_a_cache(loaded: LoadedModel) -> bool:
    """Whether the model takes positions and a cache of keys and values that rows may be picked from."""
    model = loaded.model
    stateful = bool(getattr(model, "_is_stateful", False))
    return not stateful and {"position_ids", "past_key_values"} <= set(inspect.signature(model.forward).parameters)


def _width(group: Sequence[Continuation]) -> int:
    return max(len(each.ids) for each in group)


def _parts(order: Sequence[int], groups: Sequence[Sequence[Continuation]], batch_tokens: int) -> Iterator[list[int]]:
    """Groups of like length together, at least one: all options of a group go through the model at once."""
    part: list[int] = []
    rows = 0
    for n in order:
        if part and _width(groups[part[0]]) * (rows + len(groups[n])) > batch_tokens:
            yield part
            part, rows = [], 0
        part.append(n)
        rows += len(groups[n])
    if part:
        yield part


def _whole(loaded: LoadedModel, sequences: Sequence[Continuation], batch_tokens: int) -> list[float]:
    """Each sequence by itself, in right-padded batches."""
    import torch

    from foretune.tasks.numerics.batches import IGNORED, buckets, collate
    from foretune.tasks.numerics.losses import sequence_logprobs

    found, call = [0.0] * len(sequences), label_caller(loaded, [])
    lengths = [len(each.ids) for each in sequences]
    for bucket in buckets(lengths, max([batch_tokens, *lengths])):
        pairs = [(s.ids, [IGNORED] * s.start + s.ids[s.start :]) for s in (sequences[n] for n in bucket)]
        batch = collate(pairs).to(loaded.device)
        with torch.no_grad():
            nats = sequence_logprobs(call({}, batch), batch.labels).tolist()
        for n, value in zip(bucket, nats, strict=True):
            found[n] = value
    return found


def _sharing(loaded: LoadedModel, groups: Sequence[Sequence[Continuation]], shared: Sequence[int]) -> list[list[float]]:
    """Prefixes once, padded on the left; then each option over the keys and values of its item's prefix."""
    import torch

    prefixes = [group[0].ids[:length] for group, length in zip(groups, shared, strict=True)]
    item = [n for n, group in enumerate(groups) for _ in group]
    options = [each for group in groups for each in group]
    rest = [each.ids[shared[n] :] for n, each in zip(item, options, strict=True)]
    starts = [each.start - shared[n] for n, each in zip(item, options, strict=True)]
    before, before_mask = padded(prefixes, "left", loaded.device)
    after, after_mask = padded(rest, "right", loaded.device)
    with torch.no_grad():
        with unembedding(loaded, torch.tensor([0]), torch.tensor([0])):
            read = loaded.model(
                input_ids=before,
                attention_mask=before_mask,
                position_ids=positions(before_mask),
                use_cache=True,
            )
        index = torch.tensor(item, device=loaded.device)
        cache: Any = read.past_key_values
        cache.batch_select_indices(index)
        mask = torch.cat([before_mask[index], after_mask], dim=1)
        rows = [row for row, ids in enumerate(rest) for _ in ids[starts[row] :]]
        columns = [at - 1 for row, ids in enumerate(rest) for at in range(starts[row], len(ids))]
        where = torch.tensor(rows), torch.tensor(columns)
        with unembedding(loaded, *where):
            logits = loaded.model(
                input_ids=after,
                attention_mask=mask,
                position_ids=positions(mask)[:, before.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            ).logits.float()
    labels = torch.tensor([ids[at + 1] for ids, at in zip((rest[r] for r in rows), columns, strict=True)])
    labels = labels.to(logits.device)
    nats = logits.gather(-1, labels[:, None]).squeeze(-1) - logits.logsumexp(-1)
    sums = torch.zeros(len(rest), dtype=torch.float64)
    sums.index_add_(0, where[0], nats.double().cpu())
    values = iter(sums.tolist())
    return [[next(values) for _ in group] for group in groups]


def padded(rows: Sequence[Sequence[int]], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask [rows, longest], padded with id 0."""
    import torch

    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for row, values in enumerate(rows):
        at = slice(width - len(values), width) if side == "left" else slice(0, len(values))
        ids[row, at], mask[row, at] = torch.tensor(values), 1
    return ids.to(device), mask.to(device)


def positions(mask: Tensor) -> Tensor:
    """Of every token the number of tokens before it that are no padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@contextlib.contextmanager
def unembedding(loaded: LoadedModel, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Logits [n, vocab] at these places alone: the unembedding is a fifth of a small model."""
    head: Any = loaded.model.get_output_embeddings()

    def pick(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden[rows.to(hidden.device), columns.to(hidden.device)], *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
