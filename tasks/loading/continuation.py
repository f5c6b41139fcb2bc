"""How a model goes on after a prompt: transformers' own generate, greedy or drawn, with any weights in place."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from foretune.tasks.loading.models import LoadedModel, building

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.draws import Draw


def end_tokens(loaded: LoadedModel, tokenizer_eos: int | None) -> list[int]:
    """Every token that ends an answer: of the generation config, of the config, of the tokenizer."""
    named = [loaded.model.generation_config, loaded.config]
    found: set[int] = set() if tokenizer_eos is None else {tokenizer_eos}
    for each in named:
        eos = getattr(each, "eos_token_id", None)
        found |= set(eos) if isinstance(eos, list) else set() if eos is None else {eos}
    return sorted(found)


def keeps_all(cache: Any) -> bool:
    """Whether every layer of a model's cache keeps the keys and values of all tokens: no window, no state."""
    with building:
        from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in getattr(cache, "layers", [None]))


def chosen_rows(cache: Any, index: Tensor) -> Any:
    """A cache of these rows of another, which stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(index)
    return chosen


def positions(loaded: LoadedModel) -> int | None:
    """Tokens of prompt and answer together that the model was made for; None where its config does not say."""
    config = loaded.config.get_text_config()
    known = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((number for number in known if isinstance(number, int) and number > 0), None)


FEW_NUMBERS = 2**30
"""Weights of a model whose steps, of one token a row, are too short to be shared by threads: on a busy machine two wait
for each other, and answers of SmolLM2-135M took six times the processor time."""


@contextlib.contextmanager
def decoding(loaded: LoadedModel) -> Iterator[None]:
    """Few threads for the many small steps of an answer, on a processor; this thread's afterwards as before."""
    import torch

    given = torch.get_num_threads()
    small = sum(each.numel() for each in loaded.model.parameters()) < FEW_NUMBERS
    torch.set_num_threads(1 if small and loaded.device.type == "cpu" else given)
    try:
        yield
    finally:
        torch.set_num_threads(given)


def continued(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Sequence[int],
    weights: dict[str, Tensor] | None = None,
    draw: Draw | None = None,
) -> list[list[int]]:
    """Token ids after each prompt [n], up to the token that ends it (kept) or `max_new_tokens`.

    Padded on the left, with a KV cache. Penalties and suppressed tokens of the model's own generation config are left
    out: what is compared are the models.
    """
    import torch

    with building:
        from transformers import GenerationConfig, LogitsProcessorList

    width, pad = max(map(len, prompts)), ends[0] if ends else 0
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    asked: dict[str, Any] = {
        "input_ids": ids.to(loaded.device),
        "attention_mask": mask.to(loaded.device),
        "generation_config": GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=list(ends) or None,
            pad_token_id=pad,
        ),
    }
    if draw is not None:
        asked["logits_processor"] = LogitsProcessorList([draw])  # pyright: ignore[reportArgumentType]
    with decoding(loaded), _plain_config(loaded.model, GenerationConfig()):
        made = _generate(loaded.model, asked, weights)[:, width:].tolist()
    return [_ended(row, ends) for row in made]


def _generate(model: Any, asked: dict[str, Any], weights: dict[str, Tensor] | None) -> Tensor:
    from torch import nn
    from torch.func import functional_call

    if not weights:
        return model.generate(**asked)

    class Generating(nn.Module):
        """Its forward is a whole generation: the weights stay in place for all of its steps."""

        def __init__(self) -> None:
            super().__init__()
            self.asked = model

        def forward(self, **inputs: Any) -> Any:
            return self.asked.generate(**inputs)

    placed = {f"asked.{name}": weight for name, weight in weights.items()}
    return functional_call(Generating(), placed, (), asked)


@contextlib.contextmanager
def _plain_config(model: Any, plain: Any) -> Iterator[None]:
    """The model's own defaults aside, of which some (suppressed tokens) cannot be overruled by an argument."""
    own = model.generation_config
    model.generation_config = plain
    try:
        yield
    finally:
        model.generation_config = own


def _ended(ids: list[int], ends: Sequence[int]) -> list[int]:
    at = next((position for position, token in enumerate(ids) if token in ends), None)
    return ids if at is None else ids[: at + 1]
