"""Log-likelihoods of options: what several options of an item share is read once, where the model's cache allows it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from foretune.tasks.behaviour.contexts import Continuation
from foretune.tasks.loading import label_caller
from foretune.tasks.loading.continuation import chosen_rows, keeps_all
from foretune.tasks.numerics.work import work_here

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel

    Call = Callable[..., Any]

MIN_SHARED = 8
"""Tokens: a shorter prefix costs as much in a forward of its own as it saves."""

WORTH = 64
"""Tokens of padding that a forward of its own is worth."""


def log_likelihoods(
    loaded: LoadedModel, groups: Sequence[Sequence[Continuation]], batch_tokens: int
) -> list[list[float]]:
    """Nats of every continuation, summed over its tokens; a group is the options of one item."""
    import torch

    found: list[list[float]] = [[0.0] * len(group) for group in groups]
    joint, apart = read_together(loaded, groups)
    lone = [(n, option) for n in apart for option in range(len(groups[n]))]
    for (n, option), nats in zip(lone, _whole(loaded, [groups[n][o] for n, o in lone], batch_tokens), strict=True):
        found[n][option] = nats
    for part in parts(joint, groups, batch_tokens):
        with torch.no_grad():
            nats = sharing(loaded, [groups[n] for n in part], loaded.model).tolist()
        for n in part:
            found[n], nats = nats[: len(groups[n])], nats[len(groups[n]) :]
    return found


def read_together(loaded: LoadedModel, groups: Sequence[Sequence[Continuation]]) -> tuple[list[int], list[int]]:
    """The groups whose options are read over what they share, and the others."""
    caches = keeps_a_cache(loaded)
    joint = [n for n, group in enumerate(groups) if caches and len(group) > 1 and shared_prefix(group) >= MIN_SHARED]
    return joint, sorted(set(range(len(groups))) - set(joint))


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


def parts(chosen: Sequence[int], groups: Sequence[Sequence[Continuation]], batch_tokens: int) -> Iterator[list[int]]:
    """The chosen groups, those of like length together, at least one: all options of a group go through the model at
    once, and so do the prefixes of a part."""
    shared = {n: shared_prefix(groups[n]) for n in chosen}
    for run in like_lengths([shared[n] for n in chosen]):
        part: list[int] = []
        rows = longest = 0
        for n in (chosen[place] for place in run):
            rest = max(len(each.ids) for each in groups[n]) - shared[n]
            if part and shared[part[0]] * (len(part) + 1) + max(longest, rest) * (rows + len(groups[n])) > batch_tokens:
                yield part
                part, rows, longest = [], 0, 0
            part.append(n)
            rows, longest = rows + len(groups[n]), max(longest, rest)
        yield part


def _whole(loaded: LoadedModel, sequences: Sequence[Continuation], batch_tokens: int) -> list[float]:
    """Each sequence by itself, in right-padded batches."""
    import torch

    from foretune.tasks.numerics.batches import IGNORED, buckets, collate
    from foretune.tasks.numerics.losses import sequence_logprobs

    found, call = [0.0] * len(sequences), label_caller(loaded, [])
    lengths = [len(each.ids) for each in sequences]
    each_run = [
        [run[place] for place in bucket]
        for run in like_lengths(lengths)
        for bucket in buckets([lengths[n] for n in run], max([batch_tokens, *lengths]))
    ]
    for bucket in each_run:
        pairs = [(s.ids, [IGNORED] * s.start + s.ids[s.start :]) for s in (sequences[n] for n in bucket)]
        batch = collate(pairs).to(loaded.device)
        with torch.no_grad():
            nats = sequence_logprobs(call({}, batch), batch.labels).tolist()
        for n, value in zip(bucket, nats, strict=True):
            found[n] = value
    return found


def sharing(loaded: LoadedModel, groups: Sequence[Sequence[Continuation]], model: Call) -> Tensor:
    """Nats [options] of the options of all groups, one after the other; with a graph where gradients are taken.

    What all prompts begin with is read once; then the rest of every prompt, padded on the left; then the options over
    the keys and values of their prompt, without their last token, which predicts nothing. Options that differ in that
    token alone are one row. `model` is called in the place of `loaded.model`.
    """
    import torch

    shared = [shared_prefix(group) for group in groups]
    prefixes = [group[0].ids[:length] for group, length in zip(groups, shared, strict=True)]
    cache, before_mask, before = _read_prefixes(loaded, prefixes, model)
    options = [(n, each) for n, group in enumerate(groups) for each in group]
    rows: dict[tuple[int, tuple[int, ...]], list[tuple[int, int, int]]] = {}  # option, column, and the token after it
    for option, (n, each) in enumerate(options):
        rest, start = each.ids[shared[n] :], each.start - shared[n]
        predicted = rows.setdefault((n, tuple(rest[:-1])), [])
        predicted += [(option, at - 1, rest[at]) for at in range(start, len(rest))]
    read = list(rows)
    sums = torch.zeros(len(options), dtype=torch.float64, device=loaded.device)
    runs = like_lengths([len(ids) for _, ids in read])
    for number, run in enumerate(runs):
        after, after_mask = padded([read[row][1] for row in run], "right", loaded.device)
        index = torch.tensor([read[row][0] for row in run], device=loaded.device)
        mask = torch.cat([before_mask[index], after_mask], dim=1)
        places = torch.tensor([(at, *each) for at, row in enumerate(run) for each in rows[read[row]]])
        with unembedding(loaded, places[:, 0], places[:, 2]):
            logits = model(
                input_ids=after,
                attention_mask=mask,
                position_ids=positions(mask)[:, before_mask.shape[1] :],
                past_key_values=chosen_rows(cache, index),
                use_cache=True,
            ).logits
        if number == 0 and logits.requires_grad:  # the prefixes' own logits are in no loss: counted here
            logits.register_hook(_count_backward(before))
        logits, labels = logits.float(), places[:, 3:].to(logits.device)
        nats = logits.gather(-1, labels).squeeze(-1) - logits.logsumexp(-1)
        sums = sums.index_add(0, places[:, 1].to(sums.device), nats.double().to(sums.device))
    return sums.cpu()


def _count_backward(tokens: int) -> Callable[[Tensor], None]:
    work = work_here()
    return lambda gradient: work.backward(tokens)


def like_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Positions in runs of like length, the longest first: a run begins where that saves `WORTH` tokens of padding."""
    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    runs: list[list[int]] = []
    for place, n in enumerate(order):
        if not runs or (lengths[runs[-1][0]] - lengths[n]) * (len(order) - place) >= WORTH:
            runs.append([])
        runs[-1].append(n)
    return runs


def _read_prefixes(loaded: LoadedModel, prefixes: Sequence[Sequence[int]], model: Call) -> tuple[Any, Tensor, int]:
    """Keys and values of every prefix, their mask [prefixes, tokens], and how many tokens were read for them."""
    import torch

    first = torch.tensor([0])
    begun, begin, cache = torch.zeros(len(prefixes), 0, dtype=torch.long, device=loaded.device), 0, None
    common = _common(prefixes)
    with unembedding(loaded, first, first):
        if common >= MIN_SHARED and len(prefixes) > 1:
            ids = torch.tensor([prefixes[0][:common]], device=loaded.device)
            cache = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
            if keeps_all(cache):
                cache.batch_select_indices(torch.zeros(len(prefixes), dtype=torch.long, device=loaded.device))
                begin = common
                begun = torch.ones(len(prefixes), begin, dtype=torch.long, device=loaded.device)
            else:  # a window would count the padding that comes after it, a state would take it in
                cache = None
        own, own_mask = padded([prefix[begin:] for prefix in prefixes], "left", loaded.device)
        mask = torch.cat([begun, own_mask], dim=1)
        read = model(
            input_ids=own,
            attention_mask=mask,
            position_ids=positions(mask)[:, begin:],
            past_key_values=cache,
            use_cache=True,
        )
    return read.past_key_values, mask, begin + own.numel()


def _common(prefixes: Sequence[Sequence[int]]) -> int:
    """Tokens that all prefixes begin with; each keeps one of its own."""
    most = min(map(len, prefixes)) - 1
    return next((at for at in range(most) if len({prefix[at] for prefix in prefixes}) > 1), most)


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
