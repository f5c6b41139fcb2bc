"""Odd data from public reports: read as it was meant, or said by name; never dropped in silence."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from foretune.storage.datasets import read_rows
from foretune.storage.errors import BadInput
from foretune.tasks.samples.chat_template import ChatTemplateError, render_chat
from foretune.tasks.samples.forms import ColumnNames, canonical_rows
from foretune.tasks.samples.rendering import rendering_signals
from foretune.tasks.samples.table import DatasetSettings, read_samples
from foretune.tasks.samples.unread import Unread, unread_columns, unread_signals


def prompt_of(row: dict, **columns: str) -> list[tuple[str, str]]:
    (read,) = canonical_rows([row], ColumnNames(**columns))
    return [(turn["role"], turn["content"]) for turn in read.prompt]  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Who?", "context": "Ada owns it.", "response": "Ada"}, "Who?\n\nAda owns it."),
        ({"instruction": "Who?", "context": "", "response": "Ada", "category": "qa"}, "Who?"),
        ({"context": "Ada owns it.", "question": "Who?", "answer": "Ada"}, "Ada owns it.\n\nWho?"),
        ({"query": "Who?", "response": "Ada"}, "Who?"),
        ({"prompt": "Who?", "response": "Ada"}, "Who?"),
        ({"input": "Who?", "output": "Ada"}, "Who?"),
        ({"instruction": "Sum", "input": "1 2", "output": "3"}, "Sum\n\n1 2"),
    ],
)
def test_a_passage_beside_the_question_is_part_of_the_prompt(row, prompt):
    assert prompt_of(row) == [("user", prompt)]


def test_a_column_of_another_name_can_be_mapped_to_the_input():
    row = {"instruction": "Who?", "passage": "Ada owns it.", "response": "Ada"}
    assert prompt_of(row, input="passage", output="response") == [("user", "Who?\n\nAda owns it.")]


def test_history_and_system_are_the_turns_before():
    row = {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"}
    assert prompt_of(row) == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    with pytest.raises(BadInput, match="history holds something other than pairs"):
        prompt_of({"instruction": "c", "output": "d", "history": ["a", "b"]})


def test_a_system_column_beside_conversations_is_the_first_turn_once():
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    for given in (turns, [{"from": "system", "value": "s"}, *turns]):
        (row,) = canonical_rows([{"system": "s", "conversations": given}])
        assert [turn["role"] for turn in row.completion] == ["system", "user", "assistant"]  # type: ignore[index]


@pytest.mark.parametrize("speaker", ["bot", "ai", "Assistant "])
def test_what_the_assistant_says_under_another_name_is_the_assistants_turn(speaker):
    (row,) = canonical_rows([{"conversations": [{"from": "human", "value": "a"}, {"from": speaker, "value": "b"}]}])
    assert row.completion[-1]["role"] == "assistant"  # type: ignore[index]


def test_an_unknown_speaker_is_one_line():
    with pytest.raises(BadInput, match="row 0, message 0: speaker 'narrator' is none that is known"):
        canonical_rows([{"conversations": [{"from": "narrator", "value": "a"}]}])


HALF = "a\ud83d"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": HALF}}}]},
        {"role": "assistant", "content": "b", "reasoning_content": HALF},
        {"role": HALF, "content": "b"},
        {"role": "tool", "name": HALF, "content": "b"},
    ],
)
def test_half_a_character_anywhere_in_a_message_is_one_line_with_its_row(message):
    rows = [{"messages": [{"role": "user", "content": "a"}, message]}]
    with pytest.raises(BadInput, match=r"row 0, message 1: .*half of a surrogate pair"):
        canonical_rows(rows)


@pytest.mark.parametrize("column", ["tools", "chat_template_kwargs"])
def test_half_a_character_in_a_column_is_one_line_and_a_blank_cell_is_none(column):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(BadInput, match=f"row 0: {column} holds half of a surrogate pair"):
        canonical_rows([{**row, column: [HALF] if column == "tools" else {"x": HALF}}])
    (read,) = canonical_rows([{**row, column: " "}])
    assert not read.tools and not read.template_kwargs


def test_pythons_repr_in_a_cell_is_named():
    with pytest.raises(BadInput, match="row 0: messages is Python's repr, not JSON; write the column with json.dumps"):
        canonical_rows([{"messages": "[{'role': 'user', 'content': 'a'}]"}])


PAIR = {"prompt": "p", "completion": "c"}


@pytest.mark.parametrize(
    ("rows", "column", "words"),
    [
        ([{**PAIR, "label": True}, {**PAIR, "label": False}], "label", "KTO"),
        ([{**PAIR, "images": ["a.png"]}], "images", "only text can be simulated"),
        ([{**PAIR, "weight": 0.5}], "weight", "all rows and turns count in full"),
        ([{"chosen": "a", "rejected": "b", "question": "q"}], "question", "dataset.columns.prompt"),
        ([{"text": "t", "context": "c"}], "context", "part of the prompt elsewhere"),
    ],
)
def test_a_column_that_matters_elsewhere_is_a_critical_signal(rows, column, words):
    canonical_rows(rows)
    (signal,) = unread_signals(unread_columns(rows))
    assert signal["severity"] == "critical" and f"{column} (" in signal["advice"] and words in signal["advice"]


def test_other_unread_columns_are_named_once_with_a_value():
    rows = [{**PAIR, "source": "forum", "n": None}, {**PAIR, "source": "mail"}]
    (unread,) = unread_columns(rows)
    assert unread == Unread("source", rows=2, first_row=0, value="forum", meaning=None)
    (signal,) = unread_signals([unread])
    assert signal["severity"] == "info" and signal["advice"] == "not read: source (2 rows, row 0: forum)"


def test_a_file_that_is_read_whole_has_no_signal():
    assert unread_signals(unread_columns([PAIR])) == []
    assert unread_columns([{"p": "a", "completion": "b"}], ColumnNames(prompt="p")) == []
    assert unread_columns([{**PAIR, "topic": "x"}], group_column="topic") == []


@pytest.mark.parametrize(("key", "masks", "counts"), [("weight", 0, 1), ("train", False, True), ("loss", False, True)])
def test_turns_that_are_masked_elsewhere_are_counted(key, masks, counts):
    turns = [{"role": "user", "content": "a", key: counts}, {"role": "assistant", "content": "b", key: masks}]
    (unread,) = unread_columns([{"messages": turns}])
    assert unread.column == f"messages[].{key}" and unread.rows == 1 and unread.meaning


def test_todays_date_is_not_in_the_samples(monkeypatch):
    import foretune.tasks.samples.chat_template as module

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2031, 1, 1)

    template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    before = render_chat(template, [{"role": "user", "content": "a"}], {}).text
    monkeypatch.setattr(module.datetime, "datetime", Tomorrow)
    assert render_chat(template, [{"role": "user", "content": "a"}], {}).text == before == "26 Jul 2024 a"


def signals_of(chat, rows, **changes):
    settings = DatasetSettings(path="unused", heldout={"fraction": 0.5}, **changes)
    return {each["name"]: each for each in rendering_signals(read_samples(rows, chat, settings, "train"), chat)}


def test_text_that_has_the_template_in_it_is_a_signal(chat):
    rows = [{"text": f"<|im_start|>user\nq{n}<|im_end|>\n<|im_start|>assistant\na<|im_end|>"} for n in range(8)]
    found = signals_of(chat, rows)
    assert found["template_in_text"]["severity"] == "warn" and "give the rows as messages" in str(found)
    assert "template_in_text" not in signals_of(chat, [{"text": f"plain {n}"} for n in range(8)])


def test_json_lines_and_a_json_list_are_read_whatever_the_extension(tmp_path: Path):
    lines, array = tmp_path / "lines.json", tmp_path / "array.jsonl"
    lines.write_text('{"a": 1}\n{"a": 2}\n')
    array.write_text('[\n {"a": 1},\n {"a": 2}\n]\n')
    assert read_rows(str(lines)) == read_rows(str(array)) == [{"a": 1}, {"a": 2}]
    array.write_text('[{"a": 1}, {"a": 2}]')
    assert read_rows(str(array)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("content", [{"a": {"0": 1, "1": 2}}, {"a": [1, 2], "b": [3, 4]}])
def test_a_file_by_column_is_named_with_the_way_to_write_it(tmp_path: Path, content):
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match="column by column: write it row by row"):
        read_rows(str(tmp_path / "c.json"))


@pytest.mark.parametrize(("sign", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_another_delimiter_is_named(tmp_path: Path, sign, name):
    (tmp_path / "d.csv").write_text(f"prompt{sign}completion\na{sign}b\n")
    with pytest.raises(BadInput, match=f"separated by {name}"):
        read_rows(str(tmp_path / "d.csv"))


def test_json_columns_of_parquet_are_what_they_stand_for(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.json_(pa.string())
    turns = pa.array(['{"role":"user","content":"a"}', None], pa.string()).cast(kind)
    column = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), turns)
    inner = pa.StructArray.from_arrays([pa.array(['{"x": [1]}']).cast(kind), pa.array(["n"])], names=["p", "name"])
    pq.write_table(pa.table({"messages": column, "tool": inner, "t": ["{}"]}), tmp_path / "j.parquet")
    (row,) = read_rows(str(tmp_path / "j.parquet"))
    assert row == {
        "messages": [{"role": "user", "content": "a"}, None],
        "tool": {"p": {"x": [1]}, "name": "n"},
        "t": "{}",
    }


@pytest.mark.parametrize("cell", ["None", "nan", "NA", "<NA>", "null", "NULL"])
@pytest.mark.parametrize("column", ["tools", "chat_template_kwargs"])
def test_what_pandas_reads_as_missing_in_a_cell_is_missing(cell, column):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (read,) = canonical_rows([{**row, column: cell}])
    assert not read.tools and not read.template_kwargs


def said_of(*messages: dict[str, Any], columns: ColumnNames | None = None) -> list[str]:
    signals = unread_signals(unread_columns([{"messages": [{"role": "user", "content": "a"}, *messages]}], columns))
    assert all(signal["severity"] == "critical" for signal in signals)
    return [signal["advice"] for signal in signals]


@pytest.mark.parametrize(
    ("key", "off", "on"),
    [
        ("train_on_turn", False, True), ("loss_weight", 0, 1), ("loss_mask", 0, 1), ("masked", True, False),
        ("ignore_loss", True, False), ("train_detail", [{"begin_offset": 0, "train": False}], []),
    ],
)  # fmt: skip
def test_a_key_of_a_message_that_masks_it_elsewhere_is_said(key, off, on):
    answer = {"role": "assistant", "content": "b"}
    assert f"messages[].{key} (1 turns" in said_of(answer | {key: off})[0]
    assert said_of(answer | {key: on}) == []


@pytest.mark.parametrize("role", ["tool_call", "function_call", "gpt", "human", "observation"])
def test_a_role_that_no_template_knows_is_said_until_it_is_mapped(role):
    turn = {"role": role, "content": "{}"}
    assert f"messages[].role (1 turns, row 0: {role}): a role that no published chat template" in said_of(turn)[0]
    assert said_of(turn, columns=ColumnNames(speakers={role: "assistant"})) == []


def test_openais_older_calls_are_one_line_or_said():
    call = {"name": "f", "arguments": "{}"}
    with pytest.raises(BadInput, match="row 0, message 0: messages holds a function_call, which OpenAI no longer"):
        canonical_rows([{"messages": [{"role": "assistant", "content": None, "function_call": call}]}])
    assert "make it tool_calls" in said_of({"role": "assistant", "content": "", "function_call": call})[0]


def test_a_column_without_a_name_is_said_so():
    (signal,) = unread_signals(unread_columns([{"text": "a", "": "0"}]))
    assert "a column without a name (1 rows" in signal["advice"]


@pytest.mark.parametrize("template", ["{{ [1, 2, 3] | random }}", "{{ lipsum(n=1) }}"])
def test_a_template_that_draws_at_random_is_refused(template):
    with pytest.raises(ChatTemplateError, match="draws at random"):
        render_chat(template, [{"role": "user", "content": "a"}], {})
