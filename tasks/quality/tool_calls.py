"""Tool calls in conversations: what each must say, and that calls and answers come in pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Fault = tuple[str, str]  # rule, what


def tool_faults(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None) -> Iterator[Fault]:
    """Every fault of the calls and answers of one conversation, in its order."""
    declared = _declared(tools)
    open_calls = 0
    for number, message in enumerate(messages):
        calls = message.get("tool_calls") or ()
        if message.get("role") == "tool":
            if not open_calls:
                yield "tool_call_pairing", f"message {number} answers a call that was not made"
            open_calls = max(open_calls - 1, 0)
            continue
        if message.get("role") == "user" and open_calls:
            yield "tool_call_pairing", f"message {number} comes before {open_calls} calls were answered"
            open_calls = 0
        if isinstance(calls, str) or not isinstance(calls, Sequence):
            yield "tool_call_schema", f"message {number}: tool_calls is no list"
            continue
        for call in calls:
            open_calls += 1
            fault = _fault(call, declared)
            if fault:
                yield "tool_call_schema", f"message {number}: {fault}"


def _declared(tools: Sequence[Any] | None) -> dict[str, Mapping[str, Any]] | None:
    """name -> schema of its arguments; None where no tools are given."""
    if not tools:
        return None
    functions = [tool.get("function", tool) for tool in tools if isinstance(tool, Mapping)]
    named = {f.get("name"): f.get("parameters") for f in functions if isinstance(f, Mapping)}
    return {name: p if isinstance(p, Mapping) else {} for name, p in named.items() if isinstance(name, str)}


def _fault(call: Any, declared: Mapping[str, Mapping[str, Any]] | None) -> str | None:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        return "a call without the name of a function"
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return "arguments that are no JSON"
    if not isinstance(arguments, Mapping):
        return "arguments that are no JSON object"
    if declared is None:
        return None
    if function["name"] not in declared:
        return "a call of a function that tools does not declare"
    return _argument_fault(arguments, declared[function["name"]])


def _argument_fault(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    required, known = schema.get("required"), schema.get("properties")
    if isinstance(required, Sequence) and any(isinstance(r, str) and r not in arguments for r in required):
        return "an argument is missing that the tool requires"
    if isinstance(known, Mapping) and known and any(name not in known for name in arguments):
        return "an argument that the tool does not declare"
    return None
