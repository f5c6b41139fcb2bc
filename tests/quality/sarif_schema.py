"""What SARIF 2.1.0 (OASIS, section 3) asks of the objects that foretune writes: required properties, types,
enumerations, and no property that the standard does not name. Property bags may hold anything."""

from __future__ import annotations

from typing import Any


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "required": required, "additionalProperties": False,
        "properties": {**properties, "properties": {"type": "object"}},
    }  # fmt: skip


_TEXT = {"type": "string", "minLength": 1}
_LEVEL = {"enum": ["none", "note", "warning", "error"]}
_MESSAGE = _object([], text=_TEXT, markdown=_TEXT, id=_TEXT, arguments={"type": "array"}) | {
    "anyOf": [{"required": ["text"]}, {"required": ["id"]}]
}
_FORMATTED = _object(["text"], text=_TEXT, markdown=_TEXT)
_LINE = {"type": "integer", "minimum": 1}
_REGION = _object([], startLine=_LINE, endLine=_LINE, startColumn=_LINE, endColumn=_LINE)
_ARTIFACT = _object([], uri={"type": "string", "format": "uri-reference", "pattern": r"^[!-~]+$"}, uriBaseId=_TEXT)
_PHYSICAL = _object([], artifactLocation=_ARTIFACT, region=_REGION) | {
    "anyOf": [{"required": ["artifactLocation"]}, {"required": ["address"]}]
}
_RESULT = _object(
    ["message"],
    ruleId=_TEXT,
    ruleIndex={"type": "integer", "minimum": -1},
    level=_LEVEL,
    kind={"enum": ["notApplicable", "pass", "fail", "review", "open", "informational"]},
    message=_MESSAGE,
    locations={"type": "array", "items": _object([], physicalLocation=_PHYSICAL)},
    partialFingerprints={"type": "object", "additionalProperties": {"type": "string"}},
)
_RULE = _object(
    ["id"],
    id=_TEXT,
    name=_TEXT,
    shortDescription=_FORMATTED,
    fullDescription=_FORMATTED,
    helpUri={"type": "string"},
    defaultConfiguration=_object([], level=_LEVEL, enabled={"type": "boolean"}, rank={"type": "number"}),
)
_DRIVER = _object(
    ["name"],
    name=_TEXT,
    version=_TEXT,
    semanticVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+"},
    informationUri={"type": "string"},
    rules={"type": "array", "items": _RULE, "uniqueItems": True},
)
_RUN = _object(
    ["tool"],
    tool=_object(["driver"], driver=_DRIVER),
    columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    results={"type": "array", "items": _RESULT},
)
SCHEMA = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {"type": "array", "items": _RUN},
        "properties": {"type": "object"},
    },
}
