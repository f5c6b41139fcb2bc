"""A file of prompts: plain lines, or JSON Lines of prompt or messages."""

from __future__ import annotations

import json

from foretune.storage.errors import BadInput
from foretune.storage.places import Place
from foretune.tasks.samples.messages import Message, read_messages, read_text

Part = str | list[Message]

MOST_PROMPTS = 1000
MOST_BYTES = 16 * 2**20


def prompt_parts(data: bytes, where: str) -> list[Part]:
    """Prompts of a file: a text or {"prompt": ...} or {"messages": [...]} on each line that is not empty.

    BadInput for a file that holds none, or too many, and for a line that is something else.
    """
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{where}: not UTF-8 text at byte {error.start} ({error.reason}); save it as UTF-8") from None
    json_lines = where.endswith((".jsonl", ".ndjson"))
    parts = [_part(line, number, where, json_lines) for number, line in enumerate(lines, start=1) if line.strip()]
    if not parts:
        raise BadInput(f"{where}: no prompt in the file; give one a line, or remove answers.prompts")
    if len(parts) > MOST_PROMPTS:
        raise BadInput(f"{where}: {len(parts):,} prompts; {MOST_PROMPTS:,} are the most, leave some out")
    return parts


def _part(line: str, number: int, where: str, json_lines: bool) -> Part:
    try:
        content = json.loads(line) if json_lines or line.lstrip().startswith("{") else line
    except (ValueError, RecursionError):
        if json_lines:
            raise BadInput(f"{where}: line {number} is no JSON; write an object with prompt or messages") from None
        content = line
    if isinstance(content, dict):
        content = content.get("messages") or content.get("prompt") or content.get("text")
    at = f"{where} line {number}"
    if isinstance(content, list):
        return read_messages(content, at, "messages")
    if not isinstance(content, str) or not content.strip():
        raise BadInput(f"{where}: line {number} has no prompt; write an object with prompt or messages")
    return read_text(content.strip(), at, "prompt")


def read_prompts(uri: str) -> list[Part]:
    """The prompts of a file. BadInput where it is missing, larger than any list of prompts, or no such list."""
    place = Place(uri)
    entry = place.entry()
    if entry is None:
        raise BadInput(f"answers.prompts {uri}: no such file; give a text file of prompts, or JSONL")
    if entry.size > MOST_BYTES:
        raise BadInput(f"{uri}: {entry.size / 2**20:.1f} MB; prompts have {MOST_BYTES / 2**20:g} MB at most")
    return prompt_parts(place.read_bytes(), uri)
