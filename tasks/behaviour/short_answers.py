"""Short greedy answers: the likeliest token after the other, in left-padded batches with a cache where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foretune.tasks.behaviour.likelihoods import keeps_a_cache, padded, positions, unembedding

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel


def ending_ids(loaded: LoadedModel, also: Sequence[int | None] = ()) -> set[int]:
    """Tokens that end an answer: those that the model's configurations name, and `also`."""
    found: set[int] = {token for token in also if token is not None}
    for config in (loaded.config, getattr(loaded.model, "generation_config", None)):
        ids = getattr(config, "eos_token_id", None)
        found |= set(ids if isinstance(ids, list | tuple) else [ids] if isinstance(ids, int) else [])
    return found


def short_answers(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], most: int, ends: set[int], batch_tokens: int
) -> list[list[int]]:
    """At most `most` tokens after each prompt, without the one that ends the answer."""
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    while order:
        rows = max(1, batch_tokens // (len(prompts[order[0]]) + most))
        part, order = order[:rows], order[rows:]
        for n, answer in zip(part, _answers(loaded, [prompts[n] for n in part], most, ends), strict=True):
            found[n] = answer
    return found


def _answers(loaded: LoadedModel, prompts: Sequence[Sequence[int]], most: int, ends: set[int]) -> list[list[int]]:
    import torch

    ids, mask = padded(prompts, "left", loaded.device)
    caches = keeps_a_cache(loaded)
    answers: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    cache: Any = None
    with torch.no_grad():
        for _ in range(most):
            read = ids[:, -1:] if cache is not None else ids
            logits, cache = _next(loaded, read, mask, cache, caches)
            chosen = logits.argmax(-1)
            for row, token in enumerate(chosen.tolist()):
                if row in open_rows:
                    if token in ends:
                        open_rows.discard(row)
                    else:
                        answers[row].append(token)
            if not open_rows:
                break
            ids = torch.cat([ids, chosen[:, None]], dim=1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return answers


def _next(loaded: LoadedModel, read: Tensor, mask: Tensor, cache: Any, caches: bool) -> tuple[Tensor, Any]:
    """Logits [rows, vocab] of the next token, and the cache where the model keeps one."""
    import torch

    last = torch.arange(len(read)), torch.full((len(read),), read.shape[1] - 1)
    own: dict[str, Any] = {"use_cache": False}
    if caches:
        own = {"use_cache": True, "past_key_values": cache, "position_ids": positions(mask)[:, -read.shape[1] :]}
    with unembedding(loaded, *last):
        output = loaded.model(input_ids=read, attention_mask=mask, **own)
    return output.logits.float(), output.past_key_values if caches else None
