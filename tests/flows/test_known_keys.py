"""A key of a trainer's own configuration is answered with what it is here, never with another key nearby."""

from __future__ import annotations

import dataclasses

import pytest

from foretune.flows.known_keys import RENAMED, TRAINERS, advice_for
from foretune.flows.request import Request, parse_request
from foretune.storage.errors import BadInput


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("training", "max_steps", "set training.epochs"),
        ("training", "packing", "known and not simulated"),
        ("training", "group_by_length", "known and not simulated"),
        ("training", "evaluation_strategy", "known and not simulated"),
        ("training", "fp16", "known and not simulated"),
        ("adapter", "use_dora", "known and not simulated"),
        ("adapter", "modules_to_save", "known and not simulated"),
        ("adapter", "layers_to_transform", "known and not simulated"),
        ("adapter", "rank_pattern", "known and not simulated"),
        ("adapter", "lora_r", "set adapter.r"),
        ("training", "learning_rte", "nearest key is training.learning_rate"),
    ],
)
def test_a_trainers_key_is_known(section, key, words):
    content = {"dataset": {"path": "a"}, "model": {"name_or_path": "b"}, section: {key: 1}}
    with pytest.raises(BadInput, match=words):
        parse_request(content, where="r.yaml")


def test_the_keys_are_those_of_the_installed_trainers():
    peft, trl = pytest.importorskip("peft"), pytest.importorskip("trl")
    from transformers import TrainingArguments

    for config in (TrainingArguments, peft.LoraConfig, trl.SFTConfig, trl.DPOConfig):
        unknown = {field.name for field in dataclasses.fields(config)} - TRAINERS - set(RENAMED)
        assert not unknown, config


def test_what_a_key_is_renamed_to_is_a_setting():
    for key, setting in RENAMED.items():
        model = Request
        *sections, name = setting.split(".")
        for section in sections:
            model = model.model_fields[section].annotation
        assert name in model.model_fields and advice_for(key)
