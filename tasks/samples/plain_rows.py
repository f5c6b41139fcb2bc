"""Rows whose every value is text, read without an object for each part: what most files are made of.

Equal to `canonical_rows`, `shown_texts` and the id of `identify`, which read every other row.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from foretune.tasks.samples.forms import ALWAYS_READ, KNOWN_FORMS, KnownForm, asked_text

_EXTRAS = {"input", "context"}
_encoded: Callable[[str], str] = json.encoder.encode_basestring  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True, slots=True)
class PlainRow:
    """A prompt and its answer; the prompt is empty where there is none."""

    prompt: str
    completion: str
    content_id: str
    form: str  # as CanonicalRow has it
    conversational: bool


def plain_row(row: Mapping[str, Any]) -> PlainRow | None:
    """None for a row that needs another look; every value has to be text that UTF-8 can hold."""
    reader = _reader(tuple(row))
    return None if reader is None else reader(row)


@functools.lru_cache(1000)
def _reader(columns: tuple[str, ...]) -> Callable[[Mapping[str, Any]], PlainRow] | None:
    """How rows of these columns are read; None where their form is more than two texts."""
    form = next((form for form in KNOWN_FORMS if set(form.required) <= set(columns)), None)
    if form is None or set(columns) & set(ALWAYS_READ):
        return None
    if form.name == "text":
        return functools.partial(_text, "text", '{"completion":%s,"form":"text"}')
    if form.name == "prompt+completion":
        return _prompt_completion
    adaptable = set(form.optional) & {"history"}
    if not adaptable or set(columns) & (set(form.optional) - _EXTRAS):
        return None
    return functools.partial(_turns, form)


def _text(column: str, template: str, row: Mapping[str, Any]) -> PlainRow:
    completion = row[column]
    return PlainRow("", completion, _digest(template % _encoded(completion)), "text", False)


def _prompt_completion(row: Mapping[str, Any]) -> PlainRow:
    prompt, completion = row["prompt"], row["completion"]
    content = f'{{"completion":{_encoded(completion)},"form":"prompt_completion","prompt":{_encoded(prompt)}}}'
    return PlainRow(prompt, completion, _digest(content), "prompt_completion", False)


def _turns(form: KnownForm, row: Mapping[str, Any]) -> PlainRow:
    question, answer = form.required
    prompt, completion = asked_text(question, row, 0), row[answer]
    content = (
        f'{{"completion":[{{"content":{_encoded(completion)},"role":"assistant"}}],"form":"prompt_completion",'
        f'"prompt":[{{"content":{_encoded(prompt)},"role":"user"}}]}}'
    )
    return PlainRow(prompt, completion, _digest(content), "prompt_completion", True)


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
