"""One prompt put to the base model and to a stored prediction, for whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.amplification import amplified
from foretune.tasks.behaviour.answer_settings import GenerationSettings
from foretune.tasks.behaviour.asked import Asked, as_conversation, encoded_prompts
from foretune.tasks.behaviour.asked_model import AskedModel, asked_model
from foretune.tasks.behaviour.token_diff import token_diff
from foretune.tasks.behaviour.token_texts import token_texts
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading.continuation import continued, end_tokens, positions
from foretune.tasks.samples.chat import ChatTokenizer, load_tokenizer
from foretune.tasks.samples.dataset import read_table


@dataclass(frozen=True)
class Question:
    """A prompt and how it is to be answered."""

    prompt: str
    system: str | None = None
    alpha: float | None = None
    generation: GenerationSettings = field(default_factory=GenerationSettings)


@dataclass(frozen=True)
class Answer:
    """One answer of one model."""

    of: str  # base | predicted | amplified
    sample: int  # 0 is the greedy one
    text: str
    tokens: list[str]
    token_ids: list[int]
    stopped: str  # eos | length


def answers_to(
    run: Run, model: ModelHandle, checkpoint: ArtifactRef, samples: ArtifactRef, question: Question
) -> dict[str, Any]:
    """Both models' answers, with an alpha a third one, and where the greedy ones part.

    The prompt is rendered as the training rows of `samples` are. BadInput for a prompt without text or too long for
    the model, and for a system text where rows are plain text.
    """
    asked, tokenizer = asked_prompt(run, model, checkpoint, samples, question)
    base, predicted = asked_model(run, model, None), asked_model(run, model, checkpoint)
    _check_length(asked, positions(base.loaded), question.generation.max_new_tokens)
    sides: dict[str, tuple[AskedModel, AskedModel | None]] = {"base": (base, None), "predicted": (predicted, None)}
    if question.alpha is not None:
        sides["amplified"] = (base, predicted)
    with device_lock(base.loaded):
        found = [each for of, pair in sides.items() for each in _answers(of, *pair, asked, question, tokenizer)]
    greedy = {each.of: each for each in found if each.sample == 0}
    diff = token_diff(greedy["base"].token_ids, greedy["predicted"].token_ids)
    return {
        "prompt": question.prompt,
        "system": question.system,
        "rendered": tokenizer.backend.decode(list(asked.input_ids), skip_special_tokens=False),
        "alpha": question.alpha,
        "max_new_tokens": question.generation.max_new_tokens,
        "equal": diff.equal,
        "first_difference": diff.first_difference,
        "equal_share": diff.equal_share,
        "answers": [vars(each) for each in found],
    }


def asked_prompt(
    run: Run, model: ModelHandle, checkpoint: ArtifactRef, samples: ArtifactRef, question: Question
) -> tuple[Asked, ChatTokenizer]:
    """A question as tokens, rendered as the training rows of `samples` are, and what made tokens of it."""
    tokenizer = load_tokenizer(model.moved_to(checkpoint).folder(run))
    return _asked(question, tokenizer, as_conversation(read_table(run, samples).slice(0, 1), tokenizer)), tokenizer


def _asked(question: Question, tokenizer: ChatTokenizer, conversation: bool) -> Asked:
    if not question.prompt.strip():
        raise BadInput("the prompt is empty; write something to ask")
    if question.system is None:
        return encoded_prompts([question.prompt], tokenizer, conversation)[0]
    if not conversation:
        raise BadInput("--system: the rows that were trained on are plain text; put it before the prompt")
    turns = [{"role": "system", "content": question.system}, {"role": "user", "content": question.prompt}]
    return encoded_prompts([turns], tokenizer, conversation)[0]


def _check_length(asked: Asked, window: int | None, max_new_tokens: int) -> None:
    wanted = len(asked.input_ids) + max_new_tokens
    if window is not None and wanted > window:
        raise BadInput(
            f"the prompt has {len(asked.input_ids):,} tokens and its answer may have {max_new_tokens:,}, but the model "
            f"has {window:,} positions; shorten the prompt, or lower --max-new-tokens"
        )


def _answers(
    of: str, first: AskedModel, second: AskedModel | None, asked: Asked, question: Question, tokenizer: ChatTokenizer
) -> Sequence[Answer]:
    import torch

    from foretune.tasks.numerics.draws import Draw

    settings = question.generation
    eos = tokenizer.backend.token_to_id(tokenizer.eos_token) if tokenizer.eos_token else None
    ends = end_tokens(first.loaded, eos)
    found: list[Answer] = []
    for sample in range(settings.samples + 1):
        # The same noise for every model: where they say the same, so do their draws.
        seeded = torch.Generator().manual_seed(settings.seed + sample) if sample else None
        draw = None if seeded is None else Draw([seeded], settings.temperature)
        if second is None:
            (ids,) = continued(first.loaded, [asked.input_ids], settings.max_new_tokens, ends, first.weights, draw)
        else:
            alpha = 0.0 if question.alpha is None else question.alpha
            ids = amplified(first.loaded, second.loaded, asked.input_ids, alpha, settings.max_new_tokens, ends, draw)
        text = tokenizer.backend.decode(ids, skip_special_tokens=True)
        stopped = "eos" if ids and ids[-1] in ends else "length"
        found.append(Answer(of, sample, text, token_texts(tokenizer.backend, ids), ids, stopped))
    return found
