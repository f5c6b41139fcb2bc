"""Short greedy answers: the likeliest token after the other, without the one that ends the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from foretune.tasks.loading.continuation import continued

if TYPE_CHECKING:
    from foretune.tasks.loading import LoadedModel


def short_answers(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], most: int, ends: Sequence[int], batch_tokens: int
) -> list[list[int]]:
    """At most `most` tokens after each prompt; prompts of like lengths are answered together."""
    from foretune.tasks.numerics.batches import buckets

    found: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) + most for prompt in prompts]
    for group in buckets(lengths, max([batch_tokens, *lengths])):
        answers = continued(loaded, [prompts[n] for n in group], most, ends)
        for n, answer in zip(group, answers, strict=True):
            found[n] = [token for token in answer if token not in ends]
    return found
