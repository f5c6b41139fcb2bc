"""Folders that transformers 4 reads as transformers 5 does: many tools pin the older one.

Version 5 keeps the settings of RoPE in a dict that version 4 does not know, and names a tokenizer class that it lacks.
Version 4 then takes RoPE's default base without a word, and the model is another one. Written are both spellings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""What version 4 calls a tokenizer.json without a class of a model's own; version 5 reads the name as its own."""

LONGROPE = ("short_factor", "long_factor")
"""All that version 4 lets stand in `rope_scaling` of this type; the other settings have keys beside it."""

RENAMED = {"qwen3_moe": {"num_local_experts": "num_experts"}}
"""By model_type: what version 5 writes under another name."""


def name_for_older_readers(folder: Path) -> None:
    """Add the names that transformers 4 reads to config.json and tokenizer_config.json, where transformers 5 wrote
    them: `torch_dtype`, `rope_theta`, `rope_scaling`, `rope_local_base_freq`, `partial_rotary_factor`,
    `tokenizer_class` and `model_input_names`. What version 5 reads from the folder stays what it is."""
    _update(folder / "config.json", _config_names)
    _update(folder / "tokenizer_config.json", _tokenizer_names)


def _update(file: Path, added: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    if file.exists():
        content = json.loads(file.read_text(encoding="utf-8"))
        text = json.dumps({**content, **added(content)}, indent=2, sort_keys=True, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")


def _config_names(config: dict[str, Any]) -> dict[str, Any]:
    added = {"torch_dtype": config["dtype"]} if config.get("dtype") else {}
    renamed = RENAMED.get(config.get("model_type", ""), {})
    added |= {older: config[name] for name, older in renamed.items() if name in config}
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope:  # one base for the layers that see everything, another for the sliding windows
        added |= {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"]}
        rope = rope["full_attention"]
    added |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if rope.get(key) is not None}
    if rope.get("rope_type", "default") != "default":
        added["rope_scaling"] = _scaling(rope)
    return added


def _scaling(rope: dict[str, Any]) -> dict[str, Any]:
    if rope["rope_type"] == "longrope":
        return {"type": "longrope", **{key: rope[key] for key in LONGROPE}}
    return {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}


def _tokenizer_names(config: dict[str, Any]) -> dict[str, Any]:
    named = {} if config.get("tokenizer_class") != "TokenizersBackend" else {"tokenizer_class": TOKENIZER_CLASS}
    # The models of GGUF files take no token_type_ids, which version 4 hands over where nothing is said.
    return {"model_input_names": config.get("model_input_names", ["input_ids", "attention_mask"]), **named}
