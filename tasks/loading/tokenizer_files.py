"""The files beside a model's weights that tell how it writes text: configurations and chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from foretune.tasks.loading.folders import ModelConfig
from foretune.tasks.loading.foreign import Foreign, checked, read_json, reading


class _AddedToken(Foreign):
    """A token with its treatment, as the tokenizers library takes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False
    type_: Any = Field(default=None, alias="__type")


class _Content(Foreign):
    content: str


class _NamedTemplate(Foreign):
    name: str
    template: str


_Token = str | _Content | None


class SpecialTokens(Foreign):
    """special_tokens_map.json."""

    bos_token: _Token = None
    eos_token: _Token = None
    unk_token: _Token = None
    sep_token: _Token = None
    pad_token: _Token = None
    cls_token: _Token = None
    mask_token: _Token = None
    extra_special_tokens: list[str | _Content] | dict[str, str | _Content] | None = None
    additional_special_tokens: list[str | _Content] | dict[str, str | _Content] | None = None


class TokenizerConfig(SpecialTokens):
    """tokenizer_config.json."""

    tokenizer_class: str | None = None
    split_special_tokens: bool | None = None
    added_tokens_decoder: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], _AddedToken] = Field(default_factory=dict)
    chat_template: str | list[_NamedTemplate] | dict[str, str] | None = None


TYPES: dict[str, type[Foreign]] = {
    "config.json": ModelConfig,
    "special_tokens_map.json": SpecialTokens,
    "tokenizer_config.json": TokenizerConfig,
}


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is absent. BadInput for text that is none, and for fields of other types."""
    if not path.is_file():
        return {}
    content = read_json(path)
    checked(TYPES[path.name], content, path)
    return content


def chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name ("default", rarely "tool_use"): files go before what tokenizer_config.json declares."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = {name: _text(path) for name, path in files.items() if path.is_file()}
    if found:
        return found
    declared = config.get("chat_template") or {}
    if isinstance(declared, str):
        return {"default": declared}
    if isinstance(declared, list):
        return {entry["name"]: entry["template"] for entry in declared}
    return declared


def _text(path: Path) -> str:
    with reading(path):
        return path.read_text(encoding="utf-8")
