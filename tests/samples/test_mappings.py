"""`dataset.columns` maps every part of a row, and understands the entries of LLaMA-Factory and axolotl."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from foretune.storage.digests import digest_of
from foretune.storage.errors import BadInput
from foretune.tasks.engine.keys import identity
from foretune.tasks.samples.forms import ColumnNames, canonical_rows
from foretune.tasks.samples.unread import unread_columns, unread_signals


def read(row: dict[str, Any], columns: dict[str, Any]) -> Any:
    (found,) = canonical_rows([row], ColumnNames.model_validate(columns))
    return found


def turns(part: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in part]


ASKED = [("system", "s"), ("user", "q")]
CHAT = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize("chosen", ["chosen", "preferred"])
def test_a_system_column_beside_a_pair_is_read_where_it_is_mapped(chosen):
    row = {"system": "s", "question": "q", chosen: "a", "rejected": "b"}
    found = read(row, {"prompt": "question", "system": "system", "chosen": chosen})
    assert turns(found.prompt) == ASKED and turns(found.completion) == [("assistant", "a")]
    assert turns(found.rejected) == [("assistant", "b")]
    assert read(row, {"prompt": "question", "chosen": chosen}).prompt == "q"


def test_system_and_history_before_a_prompt_and_its_completion():
    row = {"sys": "s", "past": [["a", "b"]], "prompt": "q", "completion": "c", "tools": []}
    found = read(row, {"system": "sys", "history": "past"})
    assert turns(found.prompt) == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "q")]
    chat = {
        "sys": "s",
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "c"}],
    }
    assert turns(read(chat, {"system": "sys"}).prompt) == ASKED


def test_tools_messages_roles_and_contents_can_have_other_names():
    row = {"talk": [{"who": "customer", "said": "q"}, {"who": "agent", "said": "a"}], "functions": [{"name": "f"}]}
    names = {"messages": "talk", "tools": "functions", "role": "who", "content": "said"}
    found = read(row, names | {"speakers": {"customer": "user", "agent": "assistant"}})
    assert turns(found.completion) == CHAT and found.tools == [{"name": "f"}]
    with pytest.raises(BadInput, match="row 0, message 0: speaker 'customer' is none that is known"):
        read(row, names)


LLAMA_FACTORY: list[tuple[dict[str, Any], dict[str, Any], Any]] = [
    ({"file_name": "a.json", "columns": {"prompt": "i", "query": "x", "response": "o", "system": "s", "history": "h"}},
     {"i": "q", "x": "", "o": "a", "s": "s", "h": []}, (ASKED, [("assistant", "a")], None)),
    ({"formatting": "sharegpt", "columns": {"messages": "c", "system": "sys"}},
     {"c": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "sys": ""}, (None, CHAT, None)),
    ({"formatting": "sharegpt", "columns": {"messages": "messages"},
      "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "human", "assistant_tag": "bot"}},
     {"messages": [{"role": "human", "content": "q"}, {"role": "bot", "content": "a"}]}, (None, CHAT, None)),
    ({"ranking": True, "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}},
     {"q": "q", "good": "a", "bad": "b"}, ("q", "a", "b")),
    ({"ranking": True, "formatting": "sharegpt", "columns": {"messages": "c", "chosen": "x", "rejected": "y"}},
     {"c": [{"from": "human", "value": "q"}], "x": {"from": "gpt", "value": "a"}, "y": {"from": "gpt", "value": "b"}},
     ([("user", "q")], [("assistant", "a")], [("assistant", "b")])),
]  # fmt: skip
AXOLOTL: list[tuple[dict[str, Any], dict[str, Any], Any]] = [
    ({"path": "a.jsonl", "type": "alpaca"}, {"instruction": "q", "input": "", "output": "a", "text": "all of it"},
     ([("user", "q")], [("assistant", "a")], None)),
    ({"type": {"field_instruction": "i", "field_output": "o", "field_system": "s"}}, {"i": "q", "o": "a", "s": "s"},
     (ASKED, [("assistant", "a")], None)),
    ({"type": "completion", "field": "body"}, {"body": "a"}, (None, "a", None)),
    ({"type": "chat_template", "field_messages": "c", "message_property_mappings": {"role": "from", "content": "value"},
      "roles": {"user": ["visitor"], "assistant": ["clerk"]}},
     {"c": [{"from": "visitor", "value": "q"}, {"from": "clerk", "value": "a"}]}, (None, CHAT, None)),
    ({"type": "chatml.intel"}, {"system": "s", "question": "q", "chosen": "a", "rejected": "b"},
     (ASKED, [("assistant", "a")], [("assistant", "b")])),
    ({"type": "chat_template.default", "field_messages": "c", "field_chosen": "x", "field_rejected": "y"},
     {"c": [{"role": "user", "content": "q"}], "x": {"role": "assistant", "content": "a"},
      "y": {"role": "assistant", "content": "b"}}, ([("user", "q")], [("assistant", "a")], [("assistant", "b")])),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "row", "expected"), LLAMA_FACTORY + AXOLOTL)
def test_an_entry_of_another_trainer_reads_the_row(entry, row, expected):
    found = read(row, entry)
    plain = [part if part is None or isinstance(part, str) else turns(part) for part in
             (found.prompt, found.completion, found.rejected)]  # fmt: skip
    assert tuple(plain) == expected


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"formatting": "sharegpt", "columns": {"images": "i"}}, "LLaMA-Factory's columns.images is not simulated"),
        ({"columns": {"kto_tag": "label"}}, "columns.kto_tag is not simulated; leave it out"),
        ({"formatting": "alpaca", "num_samples": 9}, "LLaMA-Factory's num_samples is not simulated"),
        ({"formatting": "openai"}, "formatting openai is not read; alpaca and sharegpt are"),
        ({"type": "sharegpt"}, "axolotl's type sharegpt is not read; alpaca, chat_template"),
        ({"type": "chat_template", "roles_to_train": ["assistant"]}, "axolotl's roles_to_train is not simulated"),
        ({"type": {"field_instruction": "i", "format": "[INST]"}}, "axolotl's type.format is not simulated"),
    ],
)
def test_what_an_entry_says_and_is_not_simulated_is_refused_by_name(entry, words):
    with pytest.raises(ValidationError, match=words):
        ColumnNames.model_validate(entry)


def test_the_key_of_what_was_stored_before_stays():
    names = ("version", "text", "messages", "prompt", "completion", "chosen", "rejected", "instruction", "input")
    names += ("context", "output", "question", "answer", "response", "system", "history")
    before = dict.fromkeys(names) | {"version": 1, "prompt": "q"}
    assert digest_of(identity(ColumnNames(prompt="q"))) == digest_of(before)
    assert identity(ColumnNames(role="who")) != identity(ColumnNames())


PAIRED = {"prompt": "p", "completion": "c"}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (PAIRED | {"label": False}, {}),
        ({"p": "p", "completion": "c", "label": False}, {"prompt": "p"}),
        ({"instruction": "p", "output": "c", "kto_tag": False}, {}),
        ({"instruction": "p", "output": "c", "label": "False"}, {}),
        ({"conversations": [{"from": "gpt", "value": "c"}], "label": 0}, {}),
    ],
)
def test_an_unwanted_answer_is_never_trained_on_unsaid(row, columns):
    (signal,) = unread_signals(unread_columns([row], ColumnNames(**columns)))
    assert signal["severity"] == "critical" and "these are KTO rows" in signal["advice"]


@pytest.mark.parametrize("row", [{"text": "t", "label": 1}, {"instruction": "p", "output": "c", "label": 1}])
def test_a_class_is_no_verdict_on_an_answer(row):
    (signal,) = unread_signals(unread_columns([row]))
    assert signal["severity"] == "info"
