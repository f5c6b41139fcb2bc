"""Items as tokens: what a model reads before it answers, and each option's own tokens after that."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from foretune.storage.errors import BadInput
from foretune.tasks.samples.chat_template import ChatTemplateError, RenderedChat
from foretune.tasks.samples.template_child import Conversation, renderer

if TYPE_CHECKING:
    from foretune.tasks.samples.chat import ChatTokenizer

Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Continuation:
    """Tokens of a context and of what comes after it; the latter begin at `start`."""

    ids: list[int]
    start: int

    @property
    def tokens(self) -> int:
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Context:
    """What stands before an answer, as text: a rendered conversation, or plain text where there is no template."""

    text: str
    chat: bool


def contexts(tokenizer: ChatTokenizer, asked: Sequence[Turns]) -> list[Context]:
    """Every conversation up to where the assistant speaks, as the trainer renders it; plain text without a template.

    A template that knows no system role gets that text before the first message. Raises BadInput where it refuses all
    the same.
    """
    if not tokenizer.has_template:
        return [Context("\n\n".join(turn["content"] for turn in turns) + "\n", chat=False) for turns in asked]
    try:
        texts = _rendered(tokenizer, asked)
    except ChatTemplateError:
        try:
            texts = _rendered(tokenizer, [_without_system(turns) for turns in asked])
        except ChatTemplateError as error:
            raise BadInput(f"behaviour: {error}; set behaviour.enabled: false, or leave that suite out") from None
    return [Context(text, chat=True) for text in texts]


def _rendered(tokenizer: ChatTokenizer, asked: Sequence[Turns]) -> tuple[str, ...]:
    conversations = [tokenizer.conversation(n, list(turns), True) for n, turns in enumerate(asked)]
    return _texts(json.dumps([asdict(each) for each in conversations]))


@functools.lru_cache(maxsize=128)
def _texts(conversations: str) -> tuple[str, ...]:
    """Texts of conversations, given as JSON. A suite is asked of several models, and a child that renders it takes as
    long to start as a small model's forward."""
    asked = [Conversation(**each) for each in json.loads(conversations)]
    with renderer(len(asked)) as renders:
        return tuple(chat.text for chat in renders.render(asked))


def _without_system(turns: Turns) -> Turns:
    if turns[0]["role"] != "system" or len(turns) == 1:
        return turns
    first = {**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
    return [first, *turns[2:]]


def context_ids(tokenizer: ChatTokenizer, asked: Sequence[Context]) -> list[list[int]]:
    """Token ids of contexts alone."""
    return [encoded(tokenizer, [context.text], context.chat)[0] for context in asked]


def encoded(tokenizer: ChatTokenizer, texts: Sequence[str], chat: bool) -> list[list[int]]:
    """A template has written every special token; plain texts get those that the tokenizer adds by itself."""
    if chat:
        return [each.input_ids for each in tokenizer.encode_chats([RenderedChat(text, ()) for text in texts])]
    return tokenizer.encode_texts(texts)


def continuations(tokenizer: ChatTokenizer, context: Context, options: Sequence[str]) -> list[Continuation]:
    """Each option after the context. Both are encoded together, and what the context alone does not have is the
    option's, white space at the context's end included: as lm-evaluation-harness does it (`_encode_pair`)."""
    text = context.text
    if not context.chat and text.rstrip():
        text = text.rstrip()
        options = [context.text[len(text) :] + option for option in options]
    before, *whole = encoded(tokenizer, [text, *(text + option for option in options)], context.chat)
    return [Continuation(ids, min(len(before), len(ids) - 1)) for ids in whole]
