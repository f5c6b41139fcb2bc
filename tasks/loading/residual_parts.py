"""The parts of a model that speak into its residual stream, as `tasks.numerics.nodes` takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.tasks.loading.hooks import block_modules, decoder_layers, parallel

if TYPE_CHECKING:
    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.nodes import Parts


def residual_parts(loaded: LoadedModel) -> Parts:
    """Heads, MLPs and what lies between them and the stream. BadInput where the architecture calls them otherwise."""
    from torch import nn

    from foretune.tasks.numerics.nodes import Parts

    model, config = loaded.model, loaded.config.get_text_config()
    blocks, heads = list(decoder_layers(model)), config.num_attention_heads
    found = [block_modules(model, block) for block in blocks]
    for needed in ("attention", "mlp", "before_mlp"):
        if any(each[needed] is None for each in found):
            raise _untold(model, {"before_mlp": "what its MLPs read"}.get(needed, f"the {needed} of every layer"))
    attention: list[Any] = [each["attention"] for each in found]
    if any(not isinstance(each, nn.Linear) or each.in_features % heads for each in attention):
        raise _untold(model, "its attention heads")

    def norms(name: str) -> list[Any] | None:
        return [each[name] for each in found] if found[0][name] is not None else None

    return Parts(
        blocks=blocks,
        attention=attention,
        mlps=[each["mlp"] for each in found],  # pyright: ignore[reportArgumentType]
        before_mlps=[each["before_mlp"] for each in found],  # pyright: ignore[reportArgumentType]
        heads=heads,
        parallel=parallel(model),
        after_attention=norms("after_attention"),
        after_mlps=norms("after_mlp"),
    )


def _untold(model: Any, what: str) -> BadInput:
    return BadInput(
        f"circuit: {type(model).__name__} does not tell {what}; give a model like Llama, Qwen 2, Gemma, GPT-2 or NeoX"
    )
