"""Directions of the residual stream, read as the tokens that they favour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foretune.tasks.loading.placement import stored_value

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from foretune.tasks.loading.models import LoadedModel

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm")


def unembedded(loaded: LoadedModel, directions: Tensor) -> Tensor:
    """Logits [n, vocab] of directions [n, d] through the model's final norm and unembedding.

    The norm carries the gains that the unembedding was trained behind (nostalgebraist, "interpreting GPT:
    the logit lens", 2020).
    """
    head, norm = loaded.model.get_output_embeddings(), _final_norm(loaded.model)
    directions = directions.to(loaded.device, loaded.dtype)
    return head(norm(directions) if norm is not None else directions)  # pyright: ignore[reportOptionalCall]


def every_token(loaded: LoadedModel) -> Tensor:
    """[vocab, d] the input embedding of every token, on the CPU."""
    return _weight_of(loaded.model.get_input_embeddings(), loaded).detach().cpu()


def unembedding(loaded: LoadedModel) -> Tensor | None:
    """[vocab, d], or None for a model without one."""
    head = loaded.model.get_output_embeddings()
    return None if head is None else _weight_of(head, loaded)


def _weight_of(module: Any, loaded: LoadedModel) -> Tensor:
    """A module's weight, fetched where it waits in main memory or on disk."""
    return stored_value(loaded.model, next(n for n, each in _named(loaded) if each is module.weight))


def _named(loaded: LoadedModel) -> list[tuple[str, Tensor]]:
    """Every parameter under all of its names: tied ones are told by either."""
    return list(loaded.model.named_parameters(remove_duplicate=False))


def _final_norm(model: PreTrainedModel) -> Any:
    decoder = model.get_decoder()
    return next((getattr(decoder, name) for name in _FINAL_NORMS if hasattr(decoder, name)), None)


def final_gains(loaded: LoadedModel) -> Tensor | None:
    """The final norm's weight [d], or None."""
    norm = _final_norm(loaded.model)
    return None if getattr(norm, "weight", None) is None else _weight_of(norm, loaded)


def shown_tokens(loaded: LoadedModel, ids: Sequence[int], most: int) -> list[str]:
    """The first `most` of these tokens as words: without those that are no text, or differ from another in case."""
    words: list[str] = []
    for text in loaded.tokenizer.batch_decode([[token] for token in ids]):
        word = text.strip()
        if word and word.isprintable() and "\ufffd" not in word and word.lower() not in map(str.lower, words):
            words.append(word)
    return words[:most]
