"""What a GGUF file says beside its weights: carried over from the file that a model came from, or made of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foretune.storage.errors import BadInput

OF_THE_FILE = ("general.architecture", "general.file_type", "general.alignment", "general.quantized_by")
"""Fields that are about the file that they stand in, or that the writer says itself."""
ITS_QUANTISATION = ("GGUF.", "quantize.", "split.")
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""model_type of a folder -> the architecture of its file; those that need no more fields than are written here."""
ELSE = "export a folder, and convert it with llama.cpp's convert_hf_to_gguf.py"
SPLITS = ("llama-bpe", "qwen2")  # of llama.cpp's names of a pattern, those that stand for one kind of tokenizer


def copy_metadata(reader: Any, writer: Any) -> None:
    """Every field of a GGUF file that is about the model, in its order and with its type."""
    from gguf import GGUFValueType

    for name, field in reader.fields.items():
        if name in OF_THE_FILE or name.startswith(ITS_QUANTISATION):
            continue
        kind, value = field.types[0], field.contents()
        if kind == GGUFValueType.ARRAY and not value:
            continue  # the writer takes no empty one
        writer.add_key_value(name, value, kind, sub_type=field.types[-1] if kind == GGUFValueType.ARRAY else None)


def architecture_of(folder: Path) -> str:
    """The architecture of a folder's file. BadInput for a model that needs fields which are not written here."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise BadInput(
            f"--gguf: no GGUF file is made of a {kind} model here, of {', '.join(ARCHITECTURES)} alone; {ELSE}"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    windowed = (kind == "mistral" and config.get("sliding_window")) or config.get("use_sliding_window")
    biased = kind == "llama" and (config.get("attention_bias") or config.get("mlp_bias"))
    odd = config.get("hidden_act", "silu") != "silu"
    for true, what in ((scaled, "scaled RoPE"), (windowed, "a sliding window"), (biased, "biases"), (odd, "no SiLU")):
        if true:
            raise BadInput(f"--gguf: this {kind} model has {what}, which is not written here; {ELSE}")
    return ARCHITECTURES[kind]


def write_metadata(folder: Path, writer: Any, name: str) -> None:
    """The fields of a model folder: shape, RoPE and tokenizer. BadInput for a tokenizer that is no byte-level BPE which
    llama.cpp knows."""
    from gguf import GGML_QUANT_VERSION
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_type("model")
    writer.add_name(name)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(width)
    writer.add_value_length(width)
    _write_tokenizer(folder, writer, config.vocab_size)


def _write_tokenizer(folder: Path, writer: Any, size: int) -> None:
    from gguf import SpecialVocab, TokenType
    from tokenizers import Tokenizer

    from foretune.tasks.loading.tokenizer_backend import tokenizer_file

    file = tokenizer_file(folder)
    content, backend = json.loads(file.read_text(encoding="utf-8")), Tokenizer.from_file(str(file))
    splits = _splits(content)
    added = {token["id"]: token for token in content.get("added_tokens", [])}
    tokens, kinds = [], []
    for number in range(size):
        token = backend.id_to_token(number)
        tokens.append(f"[PAD{number}]" if token is None else token)
        if token is None:
            kinds.append(TokenType.UNUSED)
        elif number in added:
            kinds.append(TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED)
        else:
            kinds.append(TokenType.NORMAL)
    if backend.get_vocab_size() > size:
        raise BadInput(f"--gguf: the tokenizer has {backend.get_vocab_size():,} tokens, the model {size:,}; {ELSE}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splits)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)


def _splits(content: dict[str, Any]) -> str:
    """llama.cpp's name of how a text is split before the merges. BadInput where it has none that is known here."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    own = content.get("pre_tokenizer") or {}
    parts = own.get("pretokenizers", [own])
    kinds = [part.get("type") for part in parts]
    level = parts[-1] if kinds and kinds[-1] == "ByteLevel" else {}
    if content.get("model", {}).get("type") == "BPE" and level and not level.get("add_prefix_space"):
        if kinds == ["ByteLevel"] and level.get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and level.get("use_regex", True):
            return "smollm"
        if kinds == ["Split", "ByteLevel"]:
            pattern = parts[0].get("pattern", {}).get("Regex")
            for name in SPLITS:
                if GGUF_PRE_TOKENIZER_SPLITS[name] == pattern:
                    return name
    raise BadInput(f"--gguf: its tokenizer is no byte-level BPE that is known here; {ELSE}")
