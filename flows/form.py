"""The order of the form that Prefect's UI makes of a settings model.

The UI shows properties by `position`, else as they come; and a server on Postgres hands them out sorted by the
length of their names, as `jsonb` keeps them.
"""

from __future__ import annotations

from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

CONSTANT = "version"
"""Cannot be changed in a form, and is shown last."""


def in_declared_order(core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    """A model's JSON schema with a position for every property, and for those of every model within it."""
    schema = handler(core_schema)
    _number(schema, handler, set())
    return schema


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
