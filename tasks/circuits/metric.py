"""What is traced: how much more a model expects one next token than another, at the end of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.tasks.loading import LoadedModel

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.samples.chat import ChatTokenizer


@dataclass(frozen=True)
class Metric:
    """Logit of `target` less that of `contrast`; the log-probability of `target` where there is no other token."""

    target: int
    contrast: int | None

    @property
    def words(self) -> str:
        return "log-probability" if self.contrast is None else "logit difference"

    @property
    def unit(self) -> str:
        return "nats"

    def of(self, logits: Tensor) -> Tensor:
        """[b] of next-token logits [b, V]."""
        read = logits.double()
        if self.contrast is None:
            return read.log_softmax(-1)[:, self.target]
        return read[:, self.target] - read[:, self.contrast]


def next_logits(
    loaded: LoadedModel, ids: Sequence[int], rows: int = 1, weights: Mapping[str, Tensor] | None = None
) -> Tensor:
    """[rows, V] after the last of these tokens, the same in every row; `weights` {name: tensor} stand in for the
    model's own. Only that position is unembedded."""
    import torch
    from torch.func import functional_call

    given = torch.tensor([list(ids)], device=loaded.device).expand(rows, -1)
    inputs = {"input_ids": given, "attention_mask": torch.ones_like(given), "use_cache": False}
    head: Any = loaded.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, args: (args[0][:, -1:], *args[1:]))
    try:
        return functional_call(loaded.model, dict(weights or {}), (), inputs).logits[:, -1]
    finally:
        handle.remove()


def chosen_metric(base: LoadedModel, predicted: LoadedModel, ids: Sequence[int], target: int | None) -> Metric:
    """`target`, or the predicted model's likeliest next token, against the base's likeliest where that is another."""
    import torch

    with torch.no_grad():
        before, after = (int(next_logits(each, ids)[0].argmax()) for each in (base, predicted))
    wanted = after if target is None else target
    return Metric(wanted, None if before == wanted else before)


def token_of(text: str, tokenizer: ChatTokenizer) -> int:
    """A token by its own name, else the first of a text. BadInput for a text without any."""
    named = tokenizer.backend.token_to_id(text)
    if named is not None:
        return named
    ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
    if not ids:
        raise BadInput("--target has no token; give a word")
    return ids[0]


def token_text(token: int, tokenizer: ChatTokenizer) -> str:
    """As a person reads it."""
    return tokenizer.backend.decode([token], skip_special_tokens=False)
