"""Labels of every form, against TRL's documented conventions written out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.storage.errors import BadInput
from foretune.tasks.samples.chat import ChatTokenizer
from foretune.tasks.samples.forms import canonical_rows
from foretune.tasks.samples.loss_masks import Labelled, LossRules, labelled_rows, shared_tokens

EOS = "<|im_end|>"


def one(row: dict, tokenizer: ChatTokenizer, **rules: object):
    (labelled,) = labelled_rows(canonical_rows([row]), tokenizer, LossRules(**rules))
    return labelled


def read(tokenizer: ChatTokenizer, labelled: Labelled) -> tuple[str, str]:
    """(all tokens, labelled tokens) as text."""
    kept = [i for i, label in zip(labelled.input_ids, labelled.loss_mask, strict=True) if label]
    return tuple(tokenizer.backend.decode(ids, skip_special_tokens=False) for ids in (labelled.input_ids, kept))


def test_text_trains_on_everything_and_ends(chat):
    assert read(chat, one({"text": "abc"}, chat).answer) == ("abc" + EOS, "abc" + EOS)
    assert read(chat, one({"text": "abc" + EOS}, chat).answer) == ("abc" + EOS, "abc" + EOS)


def test_a_probe_need_not_end(chat):
    assert read(chat, one({"text": "abc"}, chat, append_eos=False).answer) == ("abc", "abc")


def test_a_prompt_of_text_carries_no_label(chat):
    labelled = one({"prompt": "ab", "completion": " c"}, chat).answer
    assert read(chat, labelled) == ("ab c" + EOS, " c" + EOS)
    assert all(one({"prompt": "ab", "completion": " c"}, chat, completion_only_loss=False).answer.loss_mask)


def test_messages_train_on_everything(chat):
    whole = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    assert read(chat, one({"messages": turns}, chat).answer) == (whole, whole)
    split = one({"prompt": turns[:1], "completion": turns[1:]}, chat).answer
    assert read(chat, split) == (whole, "Yo<|im_end|>\n")


def test_truncation_keeps_the_start_and_remembers_the_length(chat):
    labelled = one({"prompt": "abcdef", "completion": "ghi"}, chat, max_length=8).answer
    assert read(chat, labelled) == ("abcdefgh", "gh")
    assert labelled.full_tokens == 10


def test_a_prompt_that_fills_the_length_leaves_no_label(chat):
    assert not any(one({"prompt": "abcdef", "completion": "g"}, chat, max_length=6).answer.loss_mask)


def test_both_answers_of_a_pair_share_the_prompt(chat):
    labelled = one({"prompt": "ab", "chosen": "c", "rejected": "ddd"}, chat, max_length=5)
    assert read(chat, labelled.answer) == ("abc" + EOS, "c" + EOS)
    assert read(chat, labelled.rejected) == ("abddd", "ddd")
    assert labelled.rejected.full_tokens == 6


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_the_shared_prefix_is_the_longest(prompt, whole):
    length = shared_tokens(prompt, whole)
    assert prompt[:length] == whole[:length]
    assert length == min(len(prompt), len(whole)) or prompt[length] != whole[length]


def test_rows_are_labelled_alike_alone_and_together(chat):
    rows = canonical_rows([{"prompt": "x" * n, "completion": "y" * n} for n in range(1, 6)])
    together = list(labelled_rows(rows, chat, LossRules()))
    assert together == [next(labelled_rows([row], chat, LossRules())) for row in rows]


def test_assistant_only_needs_marks_and_conversations(chat):
    turns = {"messages": [{"role": "user", "content": "Hi"}]}
    with pytest.raises(BadInput, match=r"needs a chat template with .% generation %. marks"):
        one(turns, chat, assistant_only_loss=True)
    with pytest.raises(BadInput, match=r"needs conversations, the rows are plain text"):
        one({"text": "abc"}, chat, assistant_only_loss=True)


def test_text_needs_an_eos_token(chat):
    endless = ChatTokenizer(chat.backend, {}, chat.templates)
    with pytest.raises(BadInput, match=r"names no eos_token"):
        one({"text": "abc"}, endless)


def test_a_conversation_that_the_template_refuses_is_named(chat):
    strict = ChatTokenizer(chat.backend, chat.special_tokens, {"default": "{{ raise_exception('no tools') }}"})
    with pytest.raises(BadInput, match=r"row 0: the chat template refuses the conversation .no tools."):
        one({"messages": [{"role": "tool", "content": "x"}]}, strict)
