"""Every form a row can have, and what is said when it has none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.storage.errors import BadInput
from foretune.tasks.samples.forms import (
    KNOWN_FORMS,
    ColumnNames,
    as_plain_text,
    canonical_rows,
    shared_prefix,
    shown_texts,
)

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
RUDE = {"role": "assistant", "content": "Go away"}
TURNS = [{"role": "user", "content": "Q\n\nmore"}]

CASES = {
    "text": ({"text": "once"}, ("text", None, "once", None)),
    "messages": ({"messages": [USER, ASSISTANT]}, ("messages", None, [USER, ASSISTANT], None)),
    "prompt+completion": ({"prompt": "p", "completion": "c"}, ("prompt_completion", "p", "c", None)),
    "prompt+completion, messages": (
        {"prompt": [USER], "completion": [ASSISTANT]},
        ("prompt_completion", [USER], [ASSISTANT], None),
    ),
    "prompt+chosen+rejected": (
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        ("preference", "p", "c", "r"),
    ),
    "implicit prompt, messages": (
        {"chosen": [USER, ASSISTANT], "rejected": [USER, RUDE]},
        ("preference", [USER], [ASSISTANT], [RUDE]),
    ),
    "text prompt beside conversations": (
        {"prompt": "Hi", "chosen": [USER, ASSISTANT], "rejected": [USER, RUDE]},
        ("preference", [USER], [ASSISTANT], [RUDE]),
    ),
    "transcripts": (
        {"chosen": "\n\nHuman: a\n\nAssistant: yes", "rejected": "\n\nHuman: a\n\nAssistant: no"},
        ("preference", "\n\nHuman: a\n\nAssistant:", " yes", " no"),
    ),
    "instruction+output": (
        {"instruction": "Q", "input": "more", "output": "A"},
        ("prompt_completion", TURNS, [{"role": "assistant", "content": "A"}], None),
    ),
    "instruction+response": (
        {"instruction": "Hi", "input": "", "response": "Hello"},
        ("prompt_completion", [USER], [ASSISTANT], None),
    ),
    "question+answer": (
        {"question": "Hi", "answer": "Hello"},
        ("prompt_completion", [USER], [ASSISTANT], None),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": 7},
        ("messages", None, [USER, ASSISTANT], None),
    ),
    "sharegpt, json in a csv cell": (
        {"conversations": '[{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]'},
        ("messages", None, [USER, ASSISTANT], None),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_form_becomes_canonical(name):
    row, expected = CASES[name]
    (canonical,) = canonical_rows([row])
    assert (canonical.form, canonical.prompt, canonical.completion, canonical.rejected) == expected


def test_empty_columns_of_other_forms_do_not_count():
    (row,) = canonical_rows([{"text": None, "prompt": "p", "completion": "", "chosen": None}])
    assert (row.form, row.completion) == ("prompt_completion", "")


def test_named_columns_are_read_as_the_form_they_make():
    columns = ColumnNames(prompt="ask", completion="say")
    (row,) = canonical_rows([{"ask": "p", "say": "c", "text": "ignored"}], columns)
    assert (row.form, row.prompt, row.completion) == ("prompt_completion", "p", "c")


def test_an_instruction_equals_the_same_turns_given_as_messages():
    instruction, messages = (
        canonical_rows([row])[0]
        for row in ({"instruction": "Hi", "output": "Hello"}, {"prompt": [USER], "completion": [ASSISTANT]})
    )
    assert instruction.content() == messages.content()


def test_an_instruction_without_a_chat_template_is_text():
    (row,) = canonical_rows([{"instruction": "Q", "input": "more", "output": "A"}])
    plain = as_plain_text(row)
    assert (plain.prompt, plain.completion) == ("Q\n\nmore\n\n", "A")


def test_people_see_words_and_no_template_marks():
    (row,) = canonical_rows([{"messages": [USER, ASSISTANT, USER, RUDE]}])
    assert shown_texts(row) == ("user: Hi\n\nassistant: Hello\n\nuser: Hi", "Go away", None)


def test_tools_and_template_arguments_travel_with_the_row():
    (row,) = canonical_rows([{"messages": [USER], "tools": '[{"name": "clock"}]', "chat_template_kwargs": {"a": 1}}])
    assert row.tools == [{"name": "clock"}] and row.template_kwargs == {"a": 1}


@given(st.text(max_size=8), st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8))
def test_answers_begin_where_they_differ(prompt, one, other):
    chosen, rejected = prompt + one, prompt + other
    shared = shared_prefix(chosen, rejected)
    assert chosen[:shared] == rejected[:shared]
    assert chosen[shared:] and rejected[shared:]


BAD = {
    "row 1 has the form text, the rows before it prompt.completion": [
        {"prompt": "p", "completion": "c"}, {"text": "t"}],
    "row 1: its columns hold messages, those of row 0 text": [
        {"prompt": "p", "completion": "c"}, {"prompt": [USER], "completion": [ASSISTANT]}],
    "row 1 has the columns prompt; the rows before it are prompt.completion and this one has no completion": [
        {"prompt": "p", "completion": "c"}, {"prompt": "p", "completion": None}],
    "row 0 has the columns promt, completion.*known forms.*nearest is prompt.completion .no prompt, is it promt": [
        {"promt": "p", "completion": "c"}],
    "row 0 has the columns .none.": [{}],
    "row 0: text holds a number where text is expected": [{"text": 4.0}],
    "row 0: text holds half of a surrogate pair at character 1": [{"text": "a\ud800"}],
    "row 0, message 1: messages holds a string where a message is expected": [{"messages": [USER, "Hello"]}],
    "row 0, message 0: messages holds a message with the keys role; a message has role and content": [
        {"messages": [{"role": "user"}]}],
    "row 0, message 0: messages holds content that is not text": [
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]}],
    "row 0: messages is not valid JSON": [{"messages": "[{"}],
    "row 0: messages holds an object where a list is expected": [{"messages": "{}"}],
    "row 0: a conversation needs a message": [{"messages": []}],
    "row 0: prompt and answer must both be text or both be messages": [
        {"prompt": "p", "completion": [ASSISTANT]}],
    "row 0: chosen and rejected must both be": [{"prompt": "p", "chosen": "c", "rejected": [RUDE]}],
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_a_row_that_cannot_be_read_is_named_with_the_remedy(message):
    with pytest.raises(BadInput, match=message):
        canonical_rows(BAD[message])


def test_unknown_columns_are_listed_with_every_known_form():
    with pytest.raises(BadInput) as fault:
        canonical_rows([{"id": 1, "instruction": "Q", "instances": []}])
    assert all(form.name in str(fault.value) for form in KNOWN_FORMS)
    assert "id, instruction, instances" in str(fault.value)
    assert "the nearest is instruction+output (no output)" in str(fault.value)


def test_a_named_column_that_is_not_there_gets_the_nearest():
    with pytest.raises(BadInput, match=r"row 0 has no column asks.*the nearest is ask$"):
        canonical_rows([{"ask": "p", "say": "c"}], ColumnNames(prompt="asks", completion="say"))


def test_named_columns_that_make_no_form_are_refused():
    with pytest.raises(BadInput, match=r"no form has the columns text, prompt"):
        canonical_rows([{"a": "p", "b": "c"}], ColumnNames(text="a", prompt="b"))
