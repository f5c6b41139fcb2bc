"""Settings in YAML files: read, and what is wrong with them said in one line."""

from __future__ import annotations

import difflib
from typing import Any, get_args

import pydantic
from pydantic import BaseModel

from foretune.flows.known_keys import advice_for
from foretune.storage.display import one_line
from foretune.storage.documents import yaml_mapping
from foretune.storage.places import read_named

MOST_BYTES = 2**20
"""Of a file: every setting there is, with a thousand names of modules, takes 40 KB."""
EXAMPLES = {
    "request": "examples/demo/request.yaml",
    "gate": "examples/demo/gate.yaml",
    "rules": "the example in docs/quality.md",
}


def read_settings(uri: str, kind: str) -> dict[str, Any]:
    """The mapping in a YAML file; BadInput for a missing file and for one that holds no mapping.

    `kind` is what the file is, as its name says: request, gate, rules.
    """
    data = read_named(uri, kind, MOST_BYTES)
    return yaml_mapping(data, f"{kind} {uri}", f"start from {EXAMPLES[kind]}")


def first_fault(error: pydantic.ValidationError, model: type[BaseModel], whole: str) -> str:
    """The first fault as one line: where, what, the remedy. Items of a list count from 1; `whole` names the root."""
    fault = error.errors(include_url=False)[0]
    *parents, last = fault["loc"] or (whole,)
    path = ".".join(str(part + 1 if isinstance(part, int) else part) for part in (*parents, last))
    if fault["type"] == "extra_forbidden":
        advice = advice_for(str(last))
        if advice is not None:
            return f"{path} {advice}"
        section, known = _fields_at(model, parents)
        nearest = difflib.get_close_matches(str(last), known, n=1, cutoff=0.0)
        return f"unknown key {path}; the nearest key is {'.'.join([*section, *nearest])}"
    if fault["type"] == "missing":
        return f"{path} is missing; add it to the {whole}"
    message, given = fault["msg"].removeprefix("Value error, "), fault.get("input")
    is_plain = isinstance(given, str | int | float | bool | None)
    shown = f" (got {one_line(repr(given), 200)})" if is_plain else ""
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"


def _fields_at(model: type[BaseModel], location: list[int | str]) -> tuple[list[str], list[str]]:
    """The place of the innermost section on the way to `location`, and the keys that it knows."""
    path: list[str] = []
    for part in location:
        if isinstance(part, int):
            path.append(str(part + 1))
            continue
        field = model.model_fields.get(part)
        if field is None:
            break
        candidates = [field.annotation, *get_args(field.annotation)]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not inner:
            break
        model = inner[0]
        path.append(part)
    return path, list(model.model_fields)
