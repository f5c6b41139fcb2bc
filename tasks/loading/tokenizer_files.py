"""The files beside a model's weights that tell how it writes text: configurations and chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foretune.storage.errors import BadInput


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is absent or holds something else. BadInput for text that is no JSON."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not valid JSON ({error}); fetch the file again") from None
    return content if isinstance(content, dict) else {}


def chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name ("default", rarely "tool_use"): files go before what tokenizer_config.json declares."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
    if found:
        return found
    declared = config.get("chat_template") or {}
    if isinstance(declared, str):
        return {"default": declared}
    if isinstance(declared, list):
        return {entry["name"]: entry["template"] for entry in declared}
    return declared
