"""The difference of two models, made larger: greedy decoding over base logits + alpha (predicted - base).

Beyond either model only tokens count that one of them finds plausible, as in contrastive decoding (Li et al. 2023, eq.
3): among some fifty thousand logits the largest difference is one of tokens that neither would ever write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foretune.tasks.loading import LoadedModel
from foretune.tasks.loading.continuation import decoding

if TYPE_CHECKING:
    from torch import Tensor


PLAUSIBLE = 0.1
"""Least probability of a token in one of the models, as a share of that of its likeliest; the paper's value."""


def amplified(
    base: LoadedModel,
    predicted: LoadedModel,
    prompt: Sequence[int],
    alpha: float,
    max_new_tokens: int,
    ends: Sequence[int],
    draw: Any = None,
) -> list[int]:
    """Token ids after the prompt, up to the one that ends it (kept) or `max_new_tokens`.

    Alpha 0 is the base and alpha 1 the predicted model, to the token; above 1 what the training changes shows more
    than it would, below 0 its opposite. Both models read the same tokens, each with a KV cache of its own. `draw` turns
    logits [1, V] into ones whose largest is the draw.
    """
    import torch

    sides = _Cached(base), _Cached(predicted)
    ids = torch.tensor([list(prompt)], dtype=torch.long)
    answer: list[int] = []
    with torch.no_grad(), decoding(base):
        while len(answer) < max_new_tokens:
            first, second = (side.next_logits(ids) for side in sides)
            # lerp is exact at both ends, first + alpha (second - first) at one of them alone.
            second = second.to(first.device)
            logits = torch.lerp(first, second, alpha)
            if not 0 <= alpha <= 1:
                logits = logits.masked_fill(~(_plausible(first) | _plausible(second)), -torch.inf)
            logits = logits if draw is None else draw(ids, logits)
            answer.append(int(logits.argmax(-1)))
            if answer[-1] in ends:
                break
            ids = torch.tensor([[answer[-1]]], dtype=torch.long)
    return answer


def _plausible(logits: Tensor) -> Tensor:
    return logits >= logits.max(-1, keepdim=True).values + math.log(PLAUSIBLE)


class _Cached:
    """One model with the keys and values of what it has read."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.past, self.read = loaded, None, 0

    def next_logits(self, ids: Tensor) -> Tensor:
        """[1, V] float32 or wider after these further tokens [1, n]."""
        import torch

        self.read += ids.shape[1]
        mask = torch.ones(1, self.read, dtype=torch.long, device=self.loaded.device)
        inputs: dict[str, Any] = {"input_ids": ids.to(self.loaded.device), "attention_mask": mask, "use_cache": True}
        if self.past is not None:
            inputs["past_key_values"] = self.past
        output = self.loaded.model(**inputs)
        self.past = output.past_key_values
        logits = output.logits[:, -1]
        return logits if logits.dtype == torch.float64 else logits.float()
