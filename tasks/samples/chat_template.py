"""Chat templates rendered as transformers renders them, in jinja2's sandbox and without transformers.

Source: `transformers.utils.chat_template_utils.render_jinja_template` (transformers 5.23): block trimming,
loop controls, `tojson`, `raise_exception`, `strftime_now`, and the `{% generation %}` block around what the
assistant says.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from foretune.tasks.samples.messages import Message

# Noncharacters of Unicode: text holds none, so they can mark the assistant's spans until these are measured.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplateError(ValueError):
    """A chat template refused a conversation or cannot be compiled."""


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as the model reads it."""

    text: str
    assistant: tuple[tuple[int, int], ...]  # character spans that `{% generation %}` encloses


def has_generation_blocks(template: str) -> bool:
    """Whether the template says which text is the assistant's."""
    return _GENERATION.search(template) is not None


def render_chat(template: str, messages: list[Message], variables: dict[str, Any]) -> RenderedChat:
    """Render a conversation; `variables` are what the template sees beside `messages`.

    Raises ChatTemplateError with the template's own words where it refuses the conversation.
    """
    try:
        marked = _compiled(template).render(messages=[_complete(message) for message in messages], **variables)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise ChatTemplateError(str(error) or type(error).__name__) from None
    if not has_generation_blocks(template):
        return RenderedChat(marked, ())
    text, spans, start = [], [], 0
    for piece in re.split(f"([{_OPEN}{_CLOSE}])", marked):
        if piece == _OPEN:
            start = sum(map(len, text))
        elif piece == _CLOSE:
            spans.append((start, sum(map(len, text))))
        else:
            text.append(piece)
    return RenderedChat("".join(text), tuple(spans))


def _complete(message: Message) -> Message:
    """Reasoning goes under several names; templates look for one or another of them."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


class _GenerationBlock(jinja2.ext.Extension):
    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_enclosed"), [], [], body).set_lineno(line)

    def _enclosed(self, caller: Any) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


class _Dict:
    """`dict` inside a template: the constructor alone, so that no attribute of the type can be reached."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _Namespace(jinja2.utils.Namespace):
    """jinja2's namespace without underscore names, which would reach into Python."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, *pairs = arguments
        attributes = dict(*pairs, **named)
        for name in attributes:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template may not set {name!r} on a namespace")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _refuse_chance(*_arguments: Any, **_named: Any) -> None:
    raise jinja2.TemplateError("it draws at random, so that the same rows would be other samples each time")


PINNED_DATE = datetime.datetime(2024, 7, 26)
"""What `strftime_now` gives: with the day's date the same rows would be other samples tomorrow. The day that Llama 3's
own template falls back to."""


def _strftime_now(pattern: str) -> str:
    return PINNED_DATE.strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters |= {"tojson": _tojson, "random": _refuse_chance}
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
    )
    environment.globals["lipsum"] = _refuse_chance
    return environment.from_string(template)
