"""Model folders in Hugging Face's format: where they lie, what their configuration says, what stands for them.

Nothing here imports torch or transformers, so that a run whose results are all stored stays cheap.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, StringConstraints

from foretune.storage.digests import file_digest
from foretune.storage.errors import BadInput
from foretune.storage.places import localise
from foretune.tasks.loading.files import COMPANIONS, PICKLE, SAFETENSORS, index_map, model_files
from foretune.tasks.loading.foreign import Foreign, checked, read_json
from foretune.tasks.loading.hub import hub_snapshot

if TYPE_CHECKING:
    from foretune.tasks.loading.settings import ModelSettings

Count = Annotated[int, Field(ge=0, le=2**40)]
Name = Annotated[str, StringConstraints(max_length=200)]


class ModelConfig(Foreign):
    """The fields of config.json that are read here, whatever an architecture calls them."""

    model_type: Name | None = None
    architectures: list[Name] | None = None
    vocab_size: Count | None = None
    hidden_size: Count | None = None
    n_embd: Count | None = None
    d_model: Count | None = None
    num_hidden_layers: Count | None = None
    n_layer: Count | None = None
    num_layers: Count | None = None
    num_attention_heads: Count | list[Count] | None = None
    n_head: Count | None = None
    intermediate_size: Count | list[Count] | None = None
    n_positions: Count | None = None
    max_position_embeddings: Count | None = None
    eos_token_id: int | list[int] | None = None
    is_encoder_decoder: bool | None = None
    auto_map: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None
    text_config: ModelConfig | None = None

    @property
    def text(self) -> ModelConfig:
        """The part that describes the language model, where others stand beside it."""
        return self.text_config or self

    @property
    def width(self) -> int | None:
        """Of the residual stream."""
        return next((size for size in (self.hidden_size, self.n_embd, self.d_model) if size is not None), None)

    @property
    def depth(self) -> int | None:
        """Layers."""
        return next((n for n in (self.num_hidden_layers, self.n_layer, self.num_layers) if n is not None), None)


def resolve_model(settings: ModelSettings) -> Path:
    """Local folder of the model, or local path of its GGUF file, which `convert_gguf` turns into a folder.

    A path that exists comes first, then s3://, then the hub. Raises BadInput when nothing is found.
    """
    name = settings.name_or_path
    if "://" in name or os.path.exists(os.path.expanduser(name)) or looks_like_path(name):
        found = localise(name)
        if found.is_file() and found.suffix.lower() != ".gguf":
            raise BadInput(f"model {name}: a file of unknown kind; give a model folder or a .gguf file")
        return found
    return _fetched(name, settings)


def _fetched(name: str, settings: ModelSettings) -> Path:
    """The files of `model_files` from the hub: an index first, then the files that it names."""
    folder = hub_snapshot(name, settings.revision, [*SAFETENSORS, *COMPANIONS], "model")
    single, index = SAFETENSORS
    if not any((folder / each).is_file() for each in SAFETENSORS) and settings.allow_pickle:
        single, index = PICKLE
        folder = hub_snapshot(name, settings.revision, [single, index], "model")
    if (folder / single).is_file() or not (folder / index).is_file():
        return folder
    return hub_snapshot(name, settings.revision, sorted(set(index_map(folder, index).values())), "model")


def looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~", "s3:", "file:")) or name.count("/") > 1 or name.lower().endswith(".gguf")


def model_config(folder: Path) -> ModelConfig:
    """config.json of a model folder. Raises BadInput for what is no model folder, and for fields of other types."""
    path = folder / "config.json"
    if not path.exists():
        if (folder / "adapter_config.json").is_file():
            raise BadInput(f"model {folder}: an adapter, not a model; merge it into its base model first")
        raise BadInput(f"model {folder}: no config.json; give a folder in Hugging Face's format")
    return checked(ModelConfig, read_json(path), path)


def model_fingerprint(path: Path) -> str:
    """Digest (64 hex digits) of the weights, configuration and tokenizer in a folder, or of a GGUF file.

    Names and contents count; other files (a README, optimizer states) and dates do not.
    Raises BadInput as `model_config` and `model_files` do; pickled weights are not refused here.
    """
    if path.is_file():
        return file_digest(path)
    model_config(path)
    return model_files(path, allow_pickle=True).digest


LEARNED_POSITIONS = ("gpt2", "gpt_neo", "gpt_bigcode", "opt", "openai-gpt", "biogpt", "xglm")
"""Families that look positions up in a table, which ends; the others compute them."""


@dataclass(frozen=True)
class TokenLimits:
    """What a model can read; None where config.json does not say, or nothing limits it."""

    vocabulary: int | None  # token ids are below this
    positions: int | None  # tokens of the longest row


def token_limits(folder: Path) -> TokenLimits:
    """The limits that config.json states."""
    config = model_config(folder).text
    positions = config.max_position_embeddings if config.n_positions is None else config.n_positions
    return TokenLimits(config.vocab_size, positions if config.model_type in LEARNED_POSITIONS else None)


@dataclass(frozen=True)
class ModelOutline:
    """What a model's config.json says about its shape."""

    d_model: int  # width of the residual stream
    layers: int


def model_outline(folder: Path) -> ModelOutline | None:
    """Width and depth from config.json, whatever this architecture calls them; None where it does not say."""
    config = model_config(folder).text
    return None if config.width is None or config.depth is None else ModelOutline(config.width, config.depth)
