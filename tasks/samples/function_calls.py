"""Calls of functions as LLaMA-Factory and ms-swift write them: a turn of its own, whose text is JSON.

Source: LLaMA-Factory, docs/en/getting_started/data_preparation (sharegpt with `function_call`, `observation` and
`tools`) and its FunctionFormatter: a call or a list of calls, thoughts before them; tools bare or as OpenAI has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from foretune.storage.errors import BadInput

SPEAKERS = ("function_call", "tool_call")
WRITE = 'write {"name": ..., "arguments": {...}}, or a list of such calls'
_THOUGHT = re.compile(r"\s*(<think>.*?</think>)\s*", re.DOTALL)


def call_message(said: Any, row: int | str, column: str) -> dict[str, Any]:
    """Content and tool_calls of the assistant's message that makes these calls; `said` is JSON as text, or what it
    would say. Raises BadInput, naming the turn, for what is no call."""
    where = f"row {row}: {column} holds a function_call"
    thought = _THOUGHT.match(said) if isinstance(said, str) else None
    try:
        calls = json.loads(said[thought.end() if thought else 0 :]) if isinstance(said, str) else said
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} that is not valid JSON ({error}); {WRITE}") from None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls:
        raise BadInput(f"{where} without a call in it; {WRITE}")
    return {"content": thought[1] if thought else "", "tool_calls": [_call(each, where) for each in calls]}


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise BadInput(f"{where} that names no function; {WRITE}")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{where} of {name[:80]} with arguments that are not valid JSON ({error}); {WRITE}"
            ) from None
    if not isinstance(arguments, Mapping):
        raise BadInput(f"{where} of {name[:80]} with arguments that are no object; {WRITE}")
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def wrapped_tools(tools: list[Any] | None, columns: Sequence[Any]) -> list[Any] | None:
    """Bare tools as chat templates expect them, where turns are ShareGPT's; elsewhere a template gets what is there."""
    if not tools or not any(map(_has_speakers, columns)):
        return tools
    return [{"type": "function", "function": tool} if _is_bare(tool) else tool for tool in tools]


def _has_speakers(turns: Any) -> bool:
    """Whether turns have `from` in place of a role; in a CSV file they are JSON."""
    if isinstance(turns, str):
        return '"from"' in turns
    return isinstance(turns, list) and any(isinstance(turn, Mapping) and "from" in turn for turn in turns)


def _is_bare(tool: Any) -> bool:
    return isinstance(tool, Mapping) and "function" not in tool and isinstance(tool.get("name"), str)
