"""One prompt traced for whoever asks: the metric chosen, the trace, and the words of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.circuits.metric import Metric, chosen_metric, next_logits, token_of, token_text
from foretune.tasks.circuits.settings import TraceSettings
from foretune.tasks.circuits.trace import Traced, trace
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading.continuation import positions
from foretune.tasks.samples.chat import ChatTokenizer


@dataclass(frozen=True)
class TraceQuestion:
    """What is traced at the end of a prompt's tokens."""

    input_ids: Sequence[int]
    target: str | None = None
    edges: int | None = None
    settings: TraceSettings = field(default_factory=TraceSettings)
    as_many_as_needed: bool = False


def traced_prompt(
    run: Run, model: ModelHandle, checkpoint: ArtifactRef, tokenizer: ChatTokenizer, question: TraceQuestion
) -> dict[str, Any]:
    """The trace of one prompt, its tokens, and the tokens that are compared. BadInput where it cannot be traced."""
    base, predicted = model.open(run), model.moved_to(checkpoint).open(run)
    ids, window = list(question.input_ids), positions(base)
    if window is not None and len(ids) > window:
        raise BadInput(f"the prompt has {len(ids):,} tokens, but the model has {window:,} positions; shorten it")
    wanted = None if question.target is None else token_of(question.target, tokenizer)
    with device_lock(base):
        metric = chosen_metric(base, predicted, ids, wanted)
        asked = Traced(base, predicted, ids, metric, question.settings, question.as_many_as_needed)
        found = trace(asked, edges=question.edges)
        described = {name: _token(token, predicted, ids, tokenizer) for name, token in _tokens(metric)}
    return {
        "input_ids": ids,
        "tokens": [token_text(each, tokenizer) for each in ids],
        "rendered": tokenizer.backend.decode(ids, skip_special_tokens=False),
        "heads": sum(node["layer"] == 0 and node["kind"] == "head" for node in found["nodes"]),
        "target": described["target"],
        "contrast": described.get("contrast"),
        "settings": question.settings.model_dump(exclude={"version", "batch_tokens"}),
        "trace": found,
    }


def _tokens(metric: Metric) -> list[tuple[str, int]]:
    named = [("target", metric.target), ("contrast", metric.contrast)]
    return [(name, token) for name, token in named if token is not None]


def _token(token: int, predicted: Any, ids: Sequence[int], tokenizer: ChatTokenizer) -> dict[str, Any]:
    import torch

    with torch.no_grad():
        probability = float(next_logits(predicted, ids)[0].double().softmax(-1)[token])
    return {"id": token, "text": token_text(token, tokenizer), "probability": probability}
