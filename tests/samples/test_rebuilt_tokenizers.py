"""Tokenizer classes that transformers builds anew: our ids are its ids, which training uses, not tokenizer.json's."""

from __future__ import annotations

import json
import shutil

import pytest

from foretune.tasks.loading.tokenizer_backend import tokenizer_file, tokenizer_fingerprint
from foretune.tasks.samples.chat import load_tokenizer

TEXTS = ["Name a pump.</s> Yes</s>", " leads with a space", "two  spaces", "a\nb\n\nc", "</s>x<s> y", "ünï 3.14", ""]


@pytest.fixture(scope="module")
def llama2_style(tmp_path_factory, tiny_llama):
    """A folder whose tokenizer.json prepends a mark in its normaliser, as Llama-2's does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    folder = tmp_path_factory.mktemp("model")
    shutil.copy(tiny_llama / "config.json", folder)
    letters = [chr(n) for n in range(33, 127)] + ["▁", "\n"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{n:02X}>": 3 + n for n in range(256)}
    vocabulary |= {letter: 259 + n for n, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"tokenizer_class": "LlamaTokenizer"}))
    return folder


def copied(folder, to, **config):
    copy = shutil.copytree(folder, to)
    old = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(old | config))
    return copy


@pytest.mark.parametrize(
    "name", ["LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "PreTrainedTokenizerFast"]
)
def test_ids_are_those_of_auto_tokenizer(llama2_style, tmp_path, name):
    from transformers import AutoTokenizer

    folder = copied(llama2_style, tmp_path / "model", tokenizer_class=name)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert load_tokenizer(folder).encode_texts(TEXTS) == [theirs(text).input_ids for text in TEXTS]


def test_another_tokenizer_than_the_stored_one_is_another_input(llama2_style, tmp_path):
    plain = copied(llama2_style, tmp_path / "plain", tokenizer_class="PreTrainedTokenizerFast")
    assert tokenizer_file(plain) == plain / "tokenizer.json"
    rebuilt = tokenizer_file(llama2_style)
    assert rebuilt != llama2_style / "tokenizer.json"
    assert tokenizer_file(llama2_style) == rebuilt
    from foretune.tasks.loading.files import companion_files, digest_by_name

    assert tokenizer_fingerprint(plain) == digest_by_name(plain, companion_files(plain))
    assert tokenizer_fingerprint(llama2_style) != digest_by_name(llama2_style, companion_files(llama2_style))


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "LlamaTokenizerFast"])
def test_byte_level_tokenizers_are_read_as_they_are_stored(tiny_llama, tmp_path, name):
    from foretune.tasks.loading.files import companion_files, digest_by_name

    folder = copied(tiny_llama, tmp_path / "model", tokenizer_class=name)
    assert tokenizer_file(folder) == folder / "tokenizer.json"
    assert tokenizer_fingerprint(folder) == digest_by_name(folder, companion_files(folder))
