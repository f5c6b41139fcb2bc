"""Model folders in Hugging Face's format: where they lie, which files they are made of, what stands for them.

Nothing here imports torch or transformers, so that a run whose results are all stored stays cheap.
"""

from __future__ import annotations

import fnmatch
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.digests import digest_of, file_digest
from foretune.storage.errors import BadInput
from foretune.storage.places import localise
from foretune.tasks.loading.hub import hub_snapshot

if TYPE_CHECKING:
    from foretune.tasks.loading.settings import ModelSettings

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLE = ("pytorch_model.bin", "pytorch_model.bin.index.json")
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "chat_template*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.py",
)
"""What a model folder holds beside its weights: configuration, tokenizer, and code if it brings its own."""


def resolve_model(settings: ModelSettings) -> Path:
    """Local folder of the model, or local path of its GGUF file, which `convert_gguf` turns into a folder.

    A path that exists comes first, then s3://, then the hub. Raises BadInput when nothing is found.
    """
    name = settings.name_or_path
    if "://" in name or os.path.exists(os.path.expanduser(name)) or _looks_like_path(name):
        found = localise(name)
        if found.is_file() and found.suffix.lower() != ".gguf":
            raise BadInput(f"model {name}: a file of unknown kind; give a model folder or a .gguf file")
        return found
    weights = ["*.safetensors", "*.safetensors.index.json"]
    if settings.allow_pickle:
        weights += ["*.bin", "*.bin.index.json"]
    return hub_snapshot(name, settings.revision, [*weights, *COMPANIONS], "model")


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~", "s3:", "file:")) or name.count("/") > 1 or name.lower().endswith(".gguf")


def companion_files(folder: Path) -> list[Path]:
    """Configuration and tokenizer files right in the folder, sorted by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in COMPANIONS)
    )


def weight_files(folder: Path, allow_pickle: bool = False) -> list[Path]:
    """The files with the weights, sorted by name; safetensors where there are any.

    Raises BadInput for a folder without weights, with pickled weights only, or with a missing shard.
    """
    found = _weights_named(folder, *SAFETENSORS)
    if found:
        return found
    pickled = _weights_named(folder, *PICKLE)
    if not pickled:
        raise BadInput(f"model {folder}: the folder holds no weights; it needs model.safetensors or shards")
    if not allow_pickle:
        raise BadInput(
            f"model {folder}: its weights are pickled ({pickled[0].name}), and opening a pickle can run "
            "code; convert them to safetensors, or set model.allow_pickle: true if you trust them"
        )
    return pickled


def _weights_named(folder: Path, single: str, index: str) -> list[Path]:
    if (folder / single).is_file():
        return [folder / single]
    if not (folder / index).is_file():
        return []
    names = sorted(set(_read_json(folder / index)["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BadInput(
            f"model {folder}: {len(missing)} of {len(names)} weight files are missing, first "
            f"{missing[0]}; copy the folder again"
        )
    return [folder / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: not valid JSON ({error}); copy the file again") from None


def model_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises BadInput for what is no model folder."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise BadInput(f"model {folder}: an adapter, not a model; merge it into its base model first")
        raise BadInput(f"model {folder}: no config.json; give a folder in Hugging Face's format")
    return _read_json(folder / "config.json")


def model_fingerprint(path: Path) -> str:
    """Digest (64 hex digits) of the weights, configuration and tokenizer in a folder, or of a GGUF file.

    Names and contents count; other files (a README, optimizer states) and dates do not.
    Raises BadInput as `model_config` and `weight_files` do; pickled weights are not refused here.
    """
    if path.is_file():
        return file_digest(path)
    model_config(path)
    files = [*weight_files(path, allow_pickle=True), *companion_files(path)]
    return digest_of({file.name: file_digest(file) for file in files})


LEARNED_POSITIONS = ("gpt2", "gpt_neo", "gpt_bigcode", "opt", "openai-gpt", "biogpt", "xglm")
"""Families that look positions up in a table, which ends; the others compute them."""


@dataclass(frozen=True)
class TokenLimits:
    """What a model can read; None where config.json does not say, or nothing limits it."""

    vocabulary: int | None  # token ids are below this
    positions: int | None  # tokens of the longest row


def token_limits(folder: Path) -> TokenLimits:
    """The limits that config.json states."""
    config = model_config(folder)
    config = config.get("text_config", config)
    learned = config.get("model_type") in LEARNED_POSITIONS
    positions = config.get("n_positions", config.get("max_position_embeddings")) if learned else None
    return TokenLimits(config.get("vocab_size"), positions)


@dataclass(frozen=True)
class ModelOutline:
    """What a model's config.json says about its shape."""

    d_model: int  # width of the residual stream
    layers: int


def model_outline(folder: Path) -> ModelOutline | None:
    """Width and depth from config.json, whatever this architecture calls them; None where it does not say."""
    config = model_config(folder)
    config = config.get("text_config", config)
    widths = [config[name] for name in ("hidden_size", "n_embd", "d_model") if name in config]
    depths = [config[name] for name in ("num_hidden_layers", "n_layer", "num_layers") if name in config]
    return ModelOutline(widths[0], depths[0]) if widths and depths else None
