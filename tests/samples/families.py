"""Small tokenizers of the families that models come with: normalisers, splits, decoders, published templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CORPUS = [
    "Where is the old pump? The old pump stands by the river, behind the north gate.",
    "Name a colour. Red, blue and green are colours; 3.14 and 2 + 2 are numbers.",
    "<think>\nThe user asks for the station.\n</think>\n\nStraight on, then left.",
    "Où est la gare ? Tout droit. ünï — “quoted” 日本 🙂",
    '{"name": "weather", "arguments": {"city": "Oslo"}} system user assistant tool',
    "def f(x):\n    return x**2  # comment\n\n",
] * 4

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def published(name: str) -> str:
    """A model's own template, as trl keeps it to compare with."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def byte_level(special: list[str], bos: str | None = None, nfc: bool = False) -> Any:
    """GPT-2's and SmolLM2's kind; with NFC Qwen's; with a BOS Llama 3's."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    if nfc or bos:
        words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        split = pre_tokenizers.Split(Regex(words + r"|\s*[\r\n]+|\s+(?!\S)|\s+"), behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def sentencepiece(normalizer: Any, pre_tokenizer: Any, special: list[str], bos: str | None) -> Any:
    """BPE with byte fallback over "▁", as the converters of Llama-2 and Gemma write it."""
    from tokenizers import Tokenizer, decoders, models, processors, trainers

    maker = Tokenizer(models.BPE(unk_token="<unk>"))
    maker.normalizer, maker.pre_tokenizer = normalizer, pre_tokenizer
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=[*special, *bytes_], initial_alphabet=["▁", "\n"], show_progress=False
    )
    maker.train_from_iterator([text.replace("\n", " ") for text in CORPUS], trainer)
    model = json.loads(maker.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps if pre_tokenizer else [*steps, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(special)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def unigram(special: list[str]) -> Any:
    """A unigram model with a prefix space, as T5, Phi-ported and multilingual models have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _smollm2() -> tuple[Any, dict[str, Any], str]:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return byte_level(special), {"tokenizer_class": "GPT2Tokenizer", **named}, CHATML


def _llama3() -> tuple[Any, dict[str, Any], str]:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    named = {"bos_token": special[0], "eos_token": "<|eot_id|>", "pad_token": special[1]}
    return (
        byte_level(special, bos=special[0]),
        {"tokenizer_class": "PreTrainedTokenizerFast", **named},
        published("llama3"),
    )


def _qwen(template: str) -> Callable[[], tuple[Any, dict[str, Any], str]]:
    def made() -> tuple[Any, dict[str, Any], str]:
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        tokenizer = byte_level(special, nfc=True)
        tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
        named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        return tokenizer, {"tokenizer_class": "Qwen2Tokenizer", **named}, published(template)

    return made


def _llama2() -> tuple[Any, dict[str, Any], str]:
    from tokenizers import normalizers

    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>", "legacy": False}
    made = sentencepiece(normalizer, None, ["<unk>", "<s>", "</s>"], "<s>")
    return made, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **named}, LLAMA2


def _phi3() -> tuple[Any, dict[str, Any], str]:
    tokenizer, config, _ = _llama2()
    tokenizer.add_special_tokens(["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"])
    return tokenizer, config | {"eos_token": "<|endoftext|>"}, published("phi3")


def _gemma(template: str) -> Callable[[], tuple[Any, dict[str, Any], str]]:
    def made() -> tuple[Any, dict[str, Any], str]:
        from tokenizers import normalizers, pre_tokenizers

        special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
        split = pre_tokenizers.Split(" ", behavior="merged_with_previous")
        tokenizer = sentencepiece(normalizers.Replace(" ", "▁"), split, special, "<bos>")
        named = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
        return tokenizer, {"tokenizer_class": "GemmaTokenizer", **named}, published(template)

    return made


def _prefix_space() -> tuple[Any, dict[str, Any], str]:
    special = ["<pad>", "<eos>", "<unk>", "<|im_start|>", "<|im_end|>"]
    named = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return unigram(special), {"tokenizer_class": "PreTrainedTokenizerFast", **named}, CHATML


FAMILIES: dict[str, Callable[[], tuple[Any, dict[str, Any], str]]] = {
    "byte-level": _smollm2,
    "llama3": _llama3,
    "qwen2.5": _qwen("qwen2_5"),
    "qwen3": _qwen("qwen3"),
    "prefix-space": _prefix_space,
    "llama2": _llama2,
    "phi3": _phi3,
    "gemma": _gemma("gemma"),
    "gemma3": _gemma("gemma3"),
}
"""Family -> (tokenizer, tokenizer_config.json, chat template)."""


def write_family(name: str, folder: Path) -> None:
    """A model folder of a family: a one-layer Llama whose embeddings fit the tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer, config, template = FAMILIES[name]()
    size = tokenizer.get_vocab_size()
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=size, max_position_embeddings=4096, **shape)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
