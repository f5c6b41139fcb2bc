"""What a chat template makes of conversations: what it leaves out, and what it writes otherwise once turns follow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.tasks.samples.chat_template import REASONING, ChatTemplateError
from foretune.tasks.samples.forms import CanonicalRow
from foretune.tasks.samples.supervision_findings import Finding, settings_findings
from foretune.tasks.samples.template_child import Conversation, renderer

if TYPE_CHECKING:
    from foretune.tasks.samples.chat import ChatTokenizer
    from foretune.tasks.samples.messages import Message
    from foretune.tasks.samples.table import DatasetSettings

LOOKED_AT = 2000
"""Rows whose conversations are rendered again in parts; of more rows the first."""
THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)


@dataclass(frozen=True)
class _Rendered:
    row: CanonicalRow
    messages: list[Message]
    text: str
    beginnings: list[str]  # of the conversation up to each of its answers but the last
    prompt: str | None  # as it stands before an answer is asked for


def row_findings(
    every: Sequence[CanonicalRow],
    tokenizer: ChatTokenizer,
    rows: Sequence[Mapping[str, Any]],
    settings: DatasetSettings,
) -> Iterator[Finding]:
    """What follows from rows, template and settings, without a token; `rows` as the file has them."""
    yield from template_findings(every, tokenizer)
    yield from settings_findings(tokenizer, any(row.conversational for row in every), rows, settings)


def template_findings(every: Sequence[CanonicalRow], tokenizer: ChatTokenizer) -> Iterator[Finding]:
    """Findings of the rows that are conversations."""
    conversations = [row for row in every if row.conversational]
    rows = conversations[:LOOKED_AT]
    if not rows:
        return
    rendered = _rendered(rows, tokenizer)
    more = len(conversations) > len(rows)
    note = f" (the first {LOOKED_AT:,} conversations were looked at)" if more else ""
    found = [
        (
            "template_drops_content", "critical", lambda each: any(_dropped(each)),
            "the chat template does not write a message that the row holds",
            "use a template that writes every role, or move the text into a message that is written",
        ),
        (
            "template_strips_thinking", "warn", lambda each: any(t not in each.text for t in _thoughts(each.messages)),
            "thoughts of the assistant are left out: the model is trained to answer without them",
            "make each answer the last turn of a row of its own, or use a template that keeps thoughts",
        ),
        (
            "template_drops_tool_calls", "critical", _drops_calls,
            "the chat template does not write the tool calls of the row: they are not trained on",
            "use a template that writes tool_calls, or write the call as the message's content",
        ),
        (
            "template_changes_earlier_turns", "warn",
            lambda each: any(not each.text.startswith(beginning) for beginning in each.beginnings),
            "a turn is written otherwise once others follow, so that it is trained on as the model never wrote it",
            "make each answer the last turn of a row of its own, or use a template that keeps earlier turns",
        ),
        (
            "prompt_differs_before_answer", "info",
            lambda each: each.prompt is not None and not each.text.startswith(each.prompt),
            "the prompt before an answer is written otherwise than when an answer is asked for; the loss begins where "
            "they part, as in TRL",
            "use a template that writes the prompt the same way in both cases",
        ),
    ]  # fmt: skip
    for rule, severity, finds, says, remedy in found:
        numbers = [each.row.row for each in rendered if finds(each)]
        if numbers:
            yield Finding(rule, severity, numbers, says + note, remedy)  # pyright: ignore[reportArgumentType]


def _rendered(rows: Sequence[CanonicalRow], tokenizer: ChatTokenizer) -> list[_Rendered]:
    conversations = [_messages(row) for row in rows]
    cuts = [
        [at + 1 for at, message in enumerate(each[:-1]) if message["role"] == "assistant"] for each in conversations
    ]

    def asked(row: CanonicalRow, messages: Any, generation: bool = False) -> Conversation:
        return tokenizer.conversation(row.row, messages, generation, row.tools, row.template_kwargs)

    found = []
    with renderer(len(rows) + sum(map(len, cuts))) as renders:
        for row, messages, ends in zip(rows, conversations, cuts, strict=True):
            whole = renders.render([asked(row, messages)])[0].text
            beginnings = [_or_none(renders, asked(row, messages[:end])) for end in ends]
            prompt = _or_none(renders, asked(row, row.prompt, True)) if isinstance(row.prompt, list) else None
            found.append(_Rendered(row, messages, whole, [each for each in beginnings if each is not None], prompt))
    return found


def _or_none(renders: Any, asked: Conversation) -> str | None:
    """A part of a conversation as text; None where the template refuses the part by itself."""
    try:
        return renders.render([asked])[0].text
    except ChatTemplateError:
        return None


def _messages(row: CanonicalRow) -> list[Message]:
    prompt: Any = row.prompt or []
    answer: Any = row.completion
    return [*prompt, *answer]


def _content(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(piece["text"] for piece in content)


def _thoughts(messages: Sequence[Message]) -> Iterator[str]:
    """What assistants thought, where it stands beside or inside of what they said."""
    for message in messages:
        if message["role"] != "assistant":
            continue
        beside = next((message[name] for name in REASONING if isinstance(message.get(name), str)), "")
        yield from filter(None, map(str.strip, [beside, *THOUGHT.findall(_content(message))]))


def _dropped(rendered: _Rendered) -> Iterator[bool]:
    """For every message, whether its text is not in what is rendered; templates may trim it, and move its thoughts."""
    for message in rendered.messages:
        parts = THOUGHT.split(_content(message))[::2] if message["role"] == "assistant" else [_content(message)]
        yield any(not _written(part.strip(), rendered.text) for part in parts)


def _written(text: str, rendered: str) -> bool:
    """Whether a text stands in the rendered one, as it is or as JSON writes it (an observation of a tool)."""
    return text in rendered or json.dumps(text, ensure_ascii=False)[1:-1] in rendered or _parsed_in(text, rendered)


def _parsed_in(text: str, rendered: str) -> bool:
    """A tool's JSON may be written anew, with other spaces: then its letters are there."""
    letters = re.sub(r"[\s\"'\\]", "", text)
    return text[:1] in ("{", "[") and letters in re.sub(r"[\s\"'\\]", "", rendered)


def _drops_calls(rendered: _Rendered) -> bool:
    for message in rendered.messages:
        for call in message.get("tool_calls") or ():
            function = call.get("function", call) if isinstance(call, dict) else {}
            name = function.get("name") if isinstance(function, dict) else None
            if isinstance(name, str) and name not in rendered.text:
                return True
    return False
