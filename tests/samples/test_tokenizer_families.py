"""Tokens and labels against TRL's trainers on every family of tokenizers, with the templates that models come with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foretune.tasks.loading.training_templates import EDITS, training_template
from foretune.tasks.samples.chat import load_tokenizer
from tests.samples.families import FAMILIES, write_family
from tests.samples.test_trl_equality import assert_supervised_equal, messages, ours, training

pytestmark = pytest.mark.slow

TURNS = [
    [("user", "Où est la gare ?"), ("assistant", "Tout droit."), ("user", " Merci \n"), ("assistant", "De rien. 🙂")],
    [("user", "2 + 2?"), ("assistant", "<think>\nTwo and two.\n</think>\n\n4")],
    [("user", "long " * 30), ("assistant", "x")],
    [("user", "Name a colour."), ("assistant", "red " * 60)],
    [("user", "a"), ("assistant", "<think>\nfirst\n</think>\n\nb"), ("user", "c"), ("assistant", "d\n\nd  d")],
]
TEXTS = ["plain text", " leads with a space", "two  spaces\n\n", "ünï 3.14 日本", "a" * 40, ""]
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": text} for text in TEXTS],
    "prompt_completion": [{"prompt": f"{text} p", "completion": f" {text}c"} for text in TEXTS],
    "messages": [{"messages": messages(turns)} for turns in TURNS],
    "chat_prompt_completion": [{"prompt": messages(t[:-1]), "completion": messages(t[-1:])} for t in TURNS],
}
PAIRS = [
    {"prompt": messages(t[:-1]), "chosen": messages(t[-1:]), "rejected": messages([("assistant", "No.")])}
    for t in TURNS
]
STOCK = ["llama3", "qwen2.5", "qwen3", "phi3", "gemma", "gemma3"]  # whose template TRL knows to the letter


@pytest.fixture(scope="module")
def family_folder(tmp_path_factory):
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            write_family(name, made[name])
        return made[name]

    return folder


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_labels_are_trls(family_folder, tmp_path, family, form):
    folder = family_folder(family)
    trained = training(folder, tmp_path, "sft", ROWS[form], max_length=80).train_dataset
    assert_supervised_equal(trained, ours(folder, ROWS[form], max_length=80))


@pytest.mark.parametrize("form", ["messages", "chat_prompt_completion"])
@pytest.mark.parametrize("family", STOCK)
def test_a_stock_template_is_marked_as_trl_marks_it(family_folder, tmp_path, family, form):
    folder = family_folder(family)
    rows = ROWS[form]
    trained = training(folder, tmp_path, "sft", rows, max_length=None, assistant_only_loss=True).train_dataset
    samples = ours(folder, rows, max_length=None, assistant_only_loss=True)
    assert_supervised_equal(trained, samples)
    assert not all(all(sample["loss_mask"]) for sample in samples.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_are_trls(family_folder, tmp_path, family):
    folder = family_folder(family)
    trainer = training(folder, tmp_path, "dpo", PAIRS, max_length=None)
    samples = ours(folder, PAIRS, "preferences", max_length=None)
    assert {row["number"] for row in trainer.train_dataset} == set(samples)
    for row in trainer.train_dataset:
        batch, sample = trainer.data_collator([row]), samples[row["number"]]
        for position, (ids, mask) in enumerate((("input_ids", "loss_mask"), ("rejected_ids", "rejected_mask"))):
            seen = batch["attention_mask"][position].bool()
            assert sample[ids] == batch["input_ids"][position][seen].tolist()
            assert sample[mask] == batch["completion_mask"][position][seen].bool().tolist()


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


@pytest.mark.parametrize("assistant_only", [False, True])
@pytest.mark.parametrize("family", ["qwen2.5", "qwen3"])
def test_tool_calls_are_trls(family_folder, tmp_path, family, assistant_only):
    turns: list[Any] = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "wet"},
        {"role": "assistant", "content": "Yes."},
    ]
    rows = [{"messages": turns, "tools": TOOLS}]
    folder = family_folder(family)
    trained = training(folder, tmp_path, "sft", rows, assistant_only_loss=assistant_only).train_dataset
    assert_supervised_equal(trained, ours(folder, rows, assistant_only_loss=assistant_only))


def test_stock_templates_are_marked_as_the_installed_trl_marks_them():
    from tests.samples.template_edits import found, marked_by_trl, names, stock

    assert len(names()) >= 26
    for name in names():
        assert training_template(stock(name)) == marked_by_trl(name), name
    assert json.loads(EDITS.read_text()) == found()


def test_a_template_of_ones_own_has_no_twin(chat):
    assert training_template("{{ messages }}") is None
    assert chat.marked() is chat


def test_a_template_that_has_marks_stays_as_it_is(family_folder):
    chat = load_tokenizer(family_folder("qwen3"))
    twin = chat.marked()
    assert not chat.marks_assistant and twin.marks_assistant
    assert twin.marked() is twin
