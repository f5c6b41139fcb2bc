"""Which prompts are asked, and that they are the tokens that the trainer's rows have before the answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foretune.storage.errors import BadInput
from foretune.tasks.behaviour.asked import (
    Asked,
    as_conversation,
    chosen,
    cut_to,
    encoded_prompts,
    generation_marks,
    prompts_of_rows,
)
from foretune.tasks.behaviour.prompt_files import prompt_parts
from foretune.tasks.samples.chat import ChatTokenizer, load_tokenizer
from foretune.tasks.samples.heldout import HeldoutSettings
from foretune.tasks.samples.table import DatasetSettings, read_samples

TURNS = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A lamp."},
    {"role": "user", "content": "Which one?"},
    {"role": "assistant", "content": "The red one."},
]


@pytest.fixture(scope="module")
def chat(tiny_llama: Path) -> ChatTokenizer:
    return load_tokenizer(tiny_llama)


def table_of(chat: ChatTokenizer, rows: list[dict[str, Any]], **settings: Any) -> Any:
    dataset = DatasetSettings(path="rows.jsonl", heldout=HeldoutSettings(path="rows.jsonl"), **settings)
    return read_samples(rows, chat, dataset, "heldout")


def templated(tiny_llama: Path, messages: list[dict[str, str]]) -> list[int]:
    """transformers by itself."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"instruction": "Who are you?", "output": "A lamp."}, TURNS[:1]),
        ({"messages": TURNS}, TURNS[:3]),
        ({"prompt": TURNS[:1], "completion": TURNS[1:2]}, TURNS[:1]),
        ({"prompt": TURNS[:1], "chosen": TURNS[1:2], "rejected": [{"role": "assistant", "content": "No."}]}, TURNS[:1]),
    ],
)
def test_a_conversation_is_asked_as_transformers_templates_it(chat, tiny_llama, row, asked) -> None:
    table = table_of(chat, [row])
    (found,) = prompts_of_rows(table, chat, "held-out")
    assert list(found.input_ids) == templated(tiny_llama, asked) and found.note is None
    assert as_conversation(table, chat)


def test_text_is_asked_as_it_stands(chat) -> None:
    for row in (
        {"prompt": "Who are you? ", "completion": "A lamp."},
        {"prompt": "Who are you? ", "chosen": "A", "rejected": "B"},
    ):
        table = table_of(chat, [row])
        (found,) = prompts_of_rows(table, chat, "held-out")
        assert bytes(found.input_ids) != b"" and chat.backend.decode(list(found.input_ids)) == "Who are you? "
        assert not as_conversation(table, chat)


def test_a_prompt_is_found_where_the_whole_row_is_trained_on(chat) -> None:
    table = table_of(chat, [{"prompt": "Who are you? ", "completion": "A lamp."}], completion_only_loss=False)
    (found,) = prompts_of_rows(table, chat, "held-out")
    assert chat.backend.decode(list(found.input_ids)) == "Who are you? " and found.note is None


def test_a_row_without_a_prompt_gives_its_first_tokens_and_says_so(chat) -> None:
    long, short = prompts_of_rows(
        table_of(chat, [{"text": "The river is old and slow."}, {"text": "Hi"}]).sort_by("row"), chat, "held-out"
    )
    assert long.text == "The river is old" and long.reference == " and slow."
    assert long.note == "the row has no prompt: its first 16 tokens are asked"
    assert short.text == "Hi" and "first 2 tokens" in (short.note or "")  # the end of text is left to say


def test_rows_without_a_trained_token_are_not_asked(chat) -> None:
    rows = [{"prompt": "a" * 40, "completion": "b"}, {"prompt": "c", "completion": "d"}]
    table = table_of(chat, rows, max_length=30)
    assert [each.text for each in prompts_of_rows(table, chat, "held-out")] == ["c"]


def test_a_template_without_a_generation_prompt_has_no_marks(chat) -> None:
    silent = replace(chat, templates={"default": "{% for m in messages %}{{ m['content'] }}{% endfor %}"})
    refusing = replace(chat, templates={"default": "{{ raise_exception('no') }}"})
    assert generation_marks(silent) == generation_marks(refusing) == []
    assert chat.backend.decode(generation_marks(chat), skip_special_tokens=False) == "<|im_start|>assistant\n"


def asked(text: str, origin: Any = "held-out") -> Asked:
    return Asked(tuple(text.encode()), text, origin, 0)


def test_the_file_is_asked_whole_and_probes_come_before_rows() -> None:
    fixed = [asked(text, "file") for text in ("a", "b", "a")]
    probes = [asked(text, "probe") for text in ("b", "p", "q")]
    rows = [asked(text) for text in "cdefgp"]
    found = chosen(fixed, probes, rows, 4)
    assert [each.text for each in found[:2]] == ["a", "b"]
    assert {each.text for each in found[2:4]} == {"p", "q"} and {each.origin for each in found[4:]} == {"held-out"}
    assert len(found) == 6 and len({each.prompt_id for each in found}) == 6
    assert found == chosen(fixed, probes, rows[::-1], 4)  # by what they say, not by where they stand
    fewer = chosen([], [], rows, 3)
    assert {each.text for each in chosen([], [], [*rows, asked("z")], 3)} & {each.text for each in fewer}
    assert chosen(fixed, probes, rows, 0) == found[:2]


def test_a_prompt_is_cut_at_its_beginning_to_leave_room() -> None:
    short, cut = cut_to(asked("abcdef"), 8, 4)
    assert (bytes(short.input_ids), cut) == (b"cdef", 2)
    assert cut_to(asked("abcdef"), 10, 4) == (asked("abcdef"), 0) == cut_to(asked("abcdef"), None, 4)
    with pytest.raises(BadInput, match="max_new_tokens 8: the model has 8 positions"):
        cut_to(asked("abcdef"), 8, 8)


def test_a_file_of_prompts_is_lines_or_json(chat, tiny_llama) -> None:
    assert prompt_parts(b"one\n\n two \n", "p.txt") == ["one", "two"]
    lines = b'{"prompt": "one"}\n{"messages": [{"role": "user", "content": "Who are you?"}]}\n'
    text, turns = prompt_parts(lines, "p.jsonl")
    plain, spoken = encoded_prompts([text, turns], chat, conversation=False)
    assert plain.text == "one" and bytes(plain.input_ids) and len(plain.input_ids) == 3
    assert list(spoken.input_ids) == templated(tiny_llama, TURNS[:1])
    (said,) = encoded_prompts(["Who are you?"], chat, conversation=True)
    assert said.input_ids == spoken.input_ids


@pytest.mark.parametrize(
    ("data", "where", "words"),
    [
        (b"\n\n", "p.txt", "no prompt in the file"),
        (b"\xff\xfe", "p.txt", "not UTF-8 text at byte 0"),
        (b"{not json}", "p.jsonl", "line 1 is no JSON"),
        (b'{"question": "x"}', "p.jsonl", "line 1 has no prompt"),
        (b'{"messages": [{"role": "user"}]}', "p.jsonl", "message"),
        (b"x\n" * 1001, "p.txt", "1,001 prompts; 1,000 are the most"),
    ],
)
def test_a_file_that_is_none_is_one_line(data, where, words) -> None:
    with pytest.raises(BadInput, match=words) as fault:
        prompt_parts(data, where)
    assert "\n" not in str(fault.value)
