"""Turns of the speakers `function_call` and `observation`, as LLaMA-Factory writes tool data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from foretune.storage.errors import BadInput
from foretune.tasks.samples.column_names import ColumnNames
from foretune.tasks.samples.forms import canonical_rows

NEWS = {"name": "headlines", "description": "News.", "parameters": {"type": "object", "properties": {}}}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def turns(said: Any, speaker: str = "function_call") -> dict[str, Any]:
    return {
        "conversations": [
            {"from": "human", "value": "Headlines for Peru?"},
            {"from": speaker, "value": said},
            {"from": "observation", "value": '["Sunny"]'},
            {"from": "gpt", "value": "It is sunny."},
        ]
    }


@pytest.mark.parametrize("speaker", ["function_call", "tool_call", "Function_Call "])
def test_a_call_is_the_assistants_and_an_observation_the_tools(speaker):
    (row,) = canonical_rows([turns('{"name": "headlines", "arguments": {"country": "Peru"}}', speaker)])
    assert row.completion == [
        {"role": "user", "content": "Headlines for Peru?"},
        {"role": "assistant", "content": "", "tool_calls": [call("headlines", country="Peru")]},
        {"role": "tool", "content": '["Sunny"]'},
        {"role": "assistant", "content": "It is sunny."},
    ]


@pytest.mark.parametrize(
    ("said", "content", "calls"),
    [
        ('[{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}}]', "", [call("a", x=1), call("b")]),
        ('{"name": "a", "arguments": "{\\"x\\": 1}"}', "", [call("a", x=1)]),
        ('{"name": "a"}', "", [call("a")]),
        ('<think>\nhm\n</think>\n\n{"name": "a", "arguments": {}}', "<think>\nhm\n</think>", [call("a")]),
        ({"name": "a", "arguments": {"x": 1}}, "", [call("a", x=1)]),
        ('{"type": "function", "function": {"name": "a", "arguments": {"x": 1}}}', "", [call("a", x=1)]),
    ],
)
def test_calls_are_read_however_they_stand(said, content, calls):
    (row,) = canonical_rows([turns(said)])
    message = row.completion[1]
    assert (message["content"], message["tool_calls"]) == (content, calls)  # type: ignore[index]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("headlines(Peru)", r"that is not valid JSON \(Expecting value"),
        ("", r"that is not valid JSON"),
        ("[]", "without a call in it"),
        ('{"arguments": {}}', "that names no function"),
        ('["headlines"]', "that names no function"),
        ('{"name": "a", "arguments": [1]}', "of a with arguments that are no object"),
        ('{"name": "a", "arguments": "x"}', "of a with arguments that are not valid JSON"),
        (None, "that names no function"),
        ("[" * 5000, "that is not valid JSON"),
    ],
)
def test_what_is_no_call_is_one_line_with_its_place(said, words):
    with pytest.raises(BadInput, match=rf"row 1, message 1: conversations holds a function_call {words}.*; write"):
        canonical_rows([turns('{"name": "a", "arguments": {}}'), turns(said)])


def test_bare_tools_are_wrapped_beside_speakers_and_left_beside_roles():
    wrapped = [{"type": "function", "function": NEWS}]
    said = '{"name": "headlines", "arguments": {}}'
    for tools in (json.dumps([NEWS]), [NEWS], wrapped):
        assert canonical_rows([turns(said) | {"tools": tools}])[0].tools == wrapped
    roles = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert canonical_rows([roles | {"tools": [NEWS]}])[0].tools == [NEWS]  # as TRL has it


def test_llama_factorys_own_tag_of_calls_is_read():
    entry = {
        "formatting": "sharegpt",
        "columns": {"messages": "dialog"},
        "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "u", "assistant_tag": "a",
                 "observation_tag": "o", "function_tag": "f"},
    }  # fmt: skip
    said = ["Rain?", '{"name": "weather", "arguments": {"city": "Lima"}}', "no", "No."]
    row = {"dialog": [{"who": who, "said": text} for who, text in zip("ufoa", said, strict=True)]}
    (read,) = canonical_rows([row], ColumnNames.model_validate(entry))
    assert [message["role"] for message in read.completion] == ["user", "assistant", "tool", "assistant"]  # type: ignore[index]
    assert read.completion[1]["tool_calls"] == [call("weather", city="Lima")]  # type: ignore[index]
