"""Dataset entries of other trainers as a mapping of columns: LLaMA-Factory's dataset_info.json and axolotl's datasets.

What an entry says that is not simulated is refused by name, so that nothing of it is lost in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLACES = ("file_name", "path", "hf_hub_url", "ms_hub_url", "om_hub_url", "ds_type", "data_files")
"""Where an entry's rows lie: `dataset.path` says that here."""
LLAMA_FACTORY = {"formatting", "ranking", "columns", "tags"}
AXOLOTL = {"type", "field", "roles", "message_property_mappings"}
ENTRY_KEYS = f"^({'|'.join(sorted({*LLAMA_FACTORY, *AXOLOTL, *PLACES}))}|field_.+|message_field_.+)$"
"""What is a key of an entry, as a pattern of a JSON schema."""

ALPACA_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    **{name: name for name in ("system", "history", "tools", "chosen", "rejected")},
}
SHAREGPT_COLUMNS = {name: name for name in ("messages", "system", "tools", "chosen", "rejected")}
TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
PAIR_TYPES = {
    "chatml.intel": {"prompt": "question", "system": "system", "chosen": "chosen", "rejected": "rejected"},
    "chatml.prompt_pairs": {"prompt": "prompt", "system": "system", "chosen": "chosen", "rejected": "rejected"},
    "chatml.argilla": {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
    "chatml.ultra": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
}
"""axolotl's types of preference pairs, and the columns that each of them reads."""


def as_columns(content: Any) -> Any:
    """The settings of `dataset.columns` for an entry of LLaMA-Factory or axolotl; anything else as it is.

    Raises ValueError, naming the key, for what such an entry says and is not simulated.
    """
    if not isinstance(content, Mapping):
        return content
    keys = {str(key) for key in content}
    if keys & LLAMA_FACTORY:
        return _llama_factory(content)
    if keys & AXOLOTL or any(key.startswith(("field_", "message_field_")) for key in keys):
        return _axolotl(content)
    return content


def _llama_factory(entry: Mapping[str, Any]) -> dict[str, Any]:
    sharegpt = entry.get("formatting", "alpaca") == "sharegpt"
    if entry.get("formatting", "alpaca") not in ("alpaca", "sharegpt"):
        raise ValueError(f"formatting {entry['formatting']} is not read; alpaca and sharegpt are")
    _refuse(entry, (*LLAMA_FACTORY, *PLACES), "LLaMA-Factory's")
    columns, known = _mapping(entry, "columns"), SHAREGPT_COLUMNS if sharegpt else ALPACA_COLUMNS
    _refuse(columns, known, "LLaMA-Factory's columns.")
    ranking = bool(entry.get("ranking"))
    if ranking and not sharegpt:
        known = known | {"prompt": "prompt"}
        _refuse(columns, [name for name in known if name not in ("query", "response")], "with ranking, columns.")
    if ranking and sharegpt:
        known = known | {"messages": "prompt"}
    found: dict[str, Any] = {known[name]: column for name, column in columns.items()}
    tags = _mapping(entry, "tags")
    _refuse(tags, ("role_tag", "content_tag", *TAGS), "LLaMA-Factory's tags.")
    found |= {name: tags[tag] for name, tag in (("role", "role_tag"), ("content", "content_tag")) if tag in tags}
    speakers = {tags[tag]: role for tag, role in TAGS.items() if tag in tags}
    return found | ({"speakers": speakers} if speakers else {})


def _axolotl(entry: Mapping[str, Any]) -> dict[str, Any]:
    kind = entry.get("type", "chat_template")
    if isinstance(kind, Mapping):
        fields = {f"field_{name}": name for name in ("system", "instruction", "input", "output")}
        _refuse(kind, fields, "axolotl's type.")
        _refuse(entry, ("type", *PLACES), "axolotl's")
        return {fields[name]: column for name, column in kind.items()}
    if kind == "completion":
        _refuse(entry, ("type", "field", *PLACES), "axolotl's")
        return {"text": entry.get("field", "text")}
    if kind in PAIR_TYPES:
        _refuse(entry, ("type", *PLACES), "axolotl's")
        return dict(PAIR_TYPES[kind])
    if kind == "alpaca":
        _refuse(entry, ("type", *PLACES), "axolotl's")
        return {"instruction": "instruction", "output": "output"}
    if kind not in ("chat_template", "chat_template.default"):
        types = ", ".join(("alpaca", "chat_template", "completion", *PAIR_TYPES))
        raise ValueError(
            f"axolotl's type {kind} is not read; {types} are, and a mapping of field_instruction and others"
        )
    return _axolotl_chat(entry, pairs=kind == "chat_template.default" or "field_chosen" in entry)


def _axolotl_chat(entry: Mapping[str, Any], pairs: bool) -> dict[str, Any]:
    named = ("message_property_mappings", "message_field_role", "message_field_content", "roles", "field_messages")
    _refuse(
        entry, ("type", *named, "field_system", "field_tools", "field_chosen", "field_rejected", *PLACES), "axolotl's"
    )
    found: dict[str, Any] = {"prompt" if pairs else "messages": entry.get("field_messages", "messages")}
    if pairs:
        found |= {name: entry.get(f"field_{name}", name) for name in ("chosen", "rejected")}
    found |= {name: entry[f"field_{name}"] for name in ("system", "tools") if f"field_{name}" in entry}
    properties = _mapping(entry, "message_property_mappings")
    _refuse(properties, ("role", "content"), "axolotl's message_property_mappings.")
    properties = {
        name: entry[f"message_field_{name}"] for name in ("role", "content") if f"message_field_{name}" in entry
    } | dict(properties)
    roles = _mapping(entry, "roles")
    speakers = {
        str(speaker): role
        for role, names in roles.items()
        for speaker in ([names] if isinstance(names, str) else names)
    }
    return found | properties | ({"speakers": speakers} if speakers else {})


def _mapping(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = entry.get(key) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} is no mapping; write names and columns")
    return value


def _refuse(entry: Mapping[str, Any], known: Any, whose: str) -> None:
    """ValueError for the first key that is not read."""
    unknown = next((str(key) for key in entry if key not in known), None)
    if unknown is not None:
        space = "" if whose.endswith(".") else " "
        raise ValueError(f"{whose}{space}{unknown} is not simulated; leave it out, and prepare the rows accordingly")
