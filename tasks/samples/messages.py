"""Messages and plain text as they stand in a dataset's columns, checked value by value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from foretune.storage.datasets import kind_of
from foretune.storage.errors import BadInput
from foretune.tasks.samples.function_calls import SPEAKERS, call_message

Message = dict[str, Any]
Part = str | list[Message]

ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(SPEAKERS, "assistant"),  # a call is what the assistant says, and is trained
    **dict.fromkeys(("observation", "tool", "function", "function_response", "tool_response"), "tool"),
    "system": "system",
}
"""Role of each ShareGPT speaker."""


def read_text(value: Any, row: int | str, column: str) -> str:
    """`value` itself. Raises BadInput, naming the row, unless it is text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise BadInput(f"row {row}: {column} holds {kind_of(value)} where text is expected; make it a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"row {row}: {column} holds half of a surrogate pair at character {error.start}; "
            "write the file again as UTF-8"
        ) from None
    return value


def check_texts(value: Any, row: int | str, column: str) -> None:
    """Raises BadInput as `read_text` does for any text inside of lists and objects that UTF-8 cannot hold."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            read_text(each, row, column)
        elif isinstance(each, Mapping):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple):
            waiting += each


def read_part(value: Any, row: int | str, column: str) -> Part:
    """Text as it is, a list as messages, one message as a list of one."""
    if isinstance(value, Mapping):
        value = [value]
    return read_messages(value, row, column) if isinstance(value, list) else read_text(value, row, column)


def read_messages(value: Sequence[Any], row: int | str, column: str) -> list[Message]:
    """Messages with `role` and `content`; ShareGPT's `from` and `value` are renamed, empty keys dropped.

    Raises BadInput for anything that is not a message, and for images.
    """
    return [_message(message, f"{row}, message {at}", column) for at, message in enumerate(value)]


def _message(value: Any, row: str, column: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadInput(
            f"row {row}: {column} holds {kind_of(value)} where a message is expected; "
            'write {"role": ..., "content": ...}'
        )
    message = {name: item for name, item in value.items() if item is not None}
    if "from" in message and "role" not in message:
        speaker = read_text(message.pop("from"), row, f"{column}.from")
        role = ROLES.get(speaker.strip().lower())
        if role is None:
            raise BadInput(
                f"row {row}: speaker {speaker!r} is none that is known ({', '.join(ROLES)}); rename it in {column}"
            )
        said = message.pop("value", None)
        message = {"role": role, "content": said, **message}
        if speaker.strip().lower() in SPEAKERS and "tool_calls" not in message:
            message |= call_message(message["content"], row, column)
    if "function_call" in message and not message.get("tool_calls") and message.get("content") is None:
        raise BadInput(f"row {row}: {column} holds a function_call, which OpenAI no longer writes; make it tool_calls")
    if not isinstance(message.get("role"), str) or ("content" not in message and "tool_calls" not in message):
        raise BadInput(
            f"row {row}: {column} holds a message with the keys {', '.join(map(str, value))}; "
            "a message has role and content (or from and value)"
        )
    content = message.get("content", "")
    pieces = content if isinstance(content, list) else [{"type": "text", "text": content}]
    for piece in pieces:
        if not isinstance(piece, Mapping) or piece.get("type") != "text":
            raise BadInput(f"row {row}: {column} holds content that is not text; only text can be simulated")
        read_text(piece.get("text"), row, column)
    for name, extra in message.items():
        if name != "content":
            check_texts(extra, row, f"{column}.{name}" if name != "role" else column)
    return message


def read_json(value: Any, row: int | str, column: str, kind: type) -> Any:
    """A list or object, decoded where it stands as a JSON string: in CSV files, and in TRL's `tools`."""
    if isinstance(value, str):
        if column in BLANK_IS_NONE and value.strip() in MISSING:
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            if value.lstrip()[:1] in ("[", "{") and _is_python(value):
                raise BadInput(
                    f"row {row}: {column} is Python's repr, not JSON; write the column with json.dumps"
                ) from None
            raise BadInput(f"row {row}: {column} is not valid JSON ({error}); mend the value") from None
    if column in BLANK_IS_NONE:  # messages are looked at one by one
        check_texts(value, row, column)
    if value is not None and not isinstance(value, kind):
        raise BadInput(f"row {row}: {column} holds {kind_of(value)} where a {kind.__name__} is expected")
    return value


BLANK_IS_NONE = ("tools", "chat_template_kwargs", "history")
"""Columns whose empty cell in a CSV file is a missing value."""
MISSING = ("", "NA", "N/A", "<NA>", "NaN", "nan", "None", "NULL", "null")
"""What of a cell means a missing value to pandas, and so to load_dataset."""


def _is_python(text: str) -> bool:
    """Whether the text is a list or a dict as Python prints it."""
    import ast

    try:
        return isinstance(ast.literal_eval(text), list | dict)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def shown(part: Part) -> str:
    """A part as a person reads it: one message is its text, several are a transcript."""
    if isinstance(part, str):
        return part
    if len(part) == 1:
        return _shown_message(part[0])
    return "\n\n".join(f"{message['role']}: {_shown_message(message)}" for message in part)


def _shown_message(message: Message) -> str:
    content = message.get("content", "")
    text = content if isinstance(content, str) else "".join(piece["text"] for piece in content)
    calls = message.get("tool_calls")
    return text + (json.dumps(calls, ensure_ascii=False) if calls else "")
