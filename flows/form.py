"""The form that Prefect's UI makes of a settings model: the settings that people change, and the rest folded.

The UI shows properties by `position`, else as they come; and a server on Postgres hands them out sorted by the
length of their names, as `jsonb` keeps them. It folds nothing by itself, but of `anyOf` it shows one part at a time:
the one that fits the value, the first one where there is none. So a section that is seldom changed is `Defaults` until
it is opened, and one that is often changed shows its usual settings until all are asked for. What a value may be stays
what it was, apart from a section that is null, which means its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

CONSTANT = "version"
"""Cannot be changed in a form, and is shown last."""

USUAL, ALL, DEFAULTS, CHANGED, NONE = "Usual settings", "All settings", "Defaults", "Other settings", "None"
"""What the parts of a section are called."""

CHECKS = {
    *("required", "additionalProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("pattern", "minLength", "maxLength", "minItems", "maxItems"),
}


def in_declared_order(core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    """A model's JSON schema with a position for every property, and for those of every model within it."""
    schema = handler(core_schema)
    _number(schema, handler, set())
    return schema


def folded(schema: JsonSchemaValue, handler: GetJsonSchemaHandler, usual: Mapping[str, Sequence[str]]) -> None:
    """Fold the sections of a model's schema, in place; `usual` are the sections that show some of their settings.

    These come first, with what is no section.
    """
    properties = handler.resolve_ref_schema(schema)["properties"]
    shown_last = {name: name == CONSTANT or (name not in usual and "$ref" in properties[name]) for name in properties}
    for position, name in enumerate(sorted(properties, key=lambda name: (shown_last[name], name == CONSTANT))):
        properties[name]["position"] = position
    for name, section in properties.items():
        optional = "anyOf" in section
        reference = next((part["$ref"] for part in section.get("anyOf", [section]) if "$ref" in part), None)
        if reference is None:
            continue
        whole = handler.resolve_ref_schema({"$ref": reference})
        model = {key: value for key, value in whole.items() if key != "description"}  # said once, by the section
        kept = {key: value for key, value in section.items() if key not in ("$ref", "anyOf", "default")}
        kept = {"title": model.get("title", name), "description": whole.get("description", ""), **kept}
        null = {"type": "null", "title": NONE if optional else DEFAULTS}
        if name not in usual:
            properties[name] = {**kept, "anyOf": [null, {**model, "title": CHANGED}]}
            continue
        shown = [_short(model, usual[name]), _unchecked({**model, "title": ALL})]
        checked = {"if": {"type": "object"}, "then": {"$ref": reference}}
        properties[name] = {**kept, "anyOf": [*([null] if optional else []), *shown], **checked}


def _short(model: JsonSchemaValue, names: Sequence[str]) -> JsonSchemaValue:
    """A section by its usual settings, in that order."""
    some = {name: {**model["properties"][name], "position": place} for place, name in enumerate(names)}
    required = [name for name in model.get("required", []) if name in some]
    return {**model, "title": USUAL, "properties": some, "required": required}


def _unchecked(model: JsonSchemaValue) -> JsonSchemaValue:
    """A section that is shown, and checked elsewhere: where no part of `anyOf` fits, the fault has no place."""
    leaves = {name: {k: v for k, v in leaf.items() if k not in CHECKS} for name, leaf in model["properties"].items()}
    return {**{key: value for key, value in model.items() if key not in CHECKS}, "properties": leaves}


def _number(schema: Any, handler: GetJsonSchemaHandler, seen: set[str]) -> None:
    if isinstance(schema, list):
        for item in schema:
            _number(item, handler, seen)
    elif isinstance(schema, dict):
        reference = schema.get("$ref")
        if reference and reference not in seen:
            seen.add(reference)
            _number(handler.resolve_ref_schema({"$ref": reference}), handler, seen)
        properties = schema.get("properties", {})
        for position, name in enumerate(sorted(properties, key=lambda name: name == CONSTANT)):
            properties[name]["position"] = position
        for part in (*properties.values(), schema.get("anyOf"), schema.get("allOf"), schema.get("items")):
            _number(part, handler, seen)
